// Package e2e holds the tests with the real programs: a coordinator and agents as processes on their own hosts, which are
// network namespaces (see scripts/lab and scripts/mesh), and the commands that people type there.
//
//	access      who reaches whom: users and tags, TCP, UDP and ICMP, IPv4 and IPv6
//	commands    output and exit code of each command; the local socket; join codes
//	change      policy changes and revocations while connections are open
//	tokens      join tokens and names
//	crash       programs killed with -9, restarted, or gone: coordinator and agents
//	bypass      a neighbour that sends past the tunnel, and a client that sends while the agent is dead
//	host        what a node leaves on its host, and what it reveals there about others
//	carry       bulk data, large packets, hosts that move, devices that vanish
//	routes      networks behind routers, and exit nodes: approved, used, revoked, killed
//	renew       node keys that change while packets are counted; a copied state directory
//	look        counters for wg, metrics, systemd, settings
//
// Every test ends with the same checks: all programs still running stop cleanly when asked to, and no secret appears in
// anything that they or the commands printed or logged.
//
// The tests need root, or a system that allows user namespaces; see scripts/lab/labtest for what happens to them elsewhere.
package e2e
