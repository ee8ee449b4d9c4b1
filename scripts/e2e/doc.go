// Package e2e holds the tests with the real programs: a coordinator and agents as processes on hosts of their own, which are
// network namespaces (see scripts/lab and scripts/mesh), and people who type commands there.
//
//	access      who reaches whom: users and tags, TCP, UDP and ICMP, IPv4 and IPv6
//	commands    what each command prints and which exit code it has; the local socket; join codes
//	change      a policy that changes and a node that is revoked, while connections live
//	tokens      join tokens and names
//	crash       programs killed with -9, restarted, or gone: coordinator and agents
//	bypass      a neighbour who sends past the tunnel, and a client who sends while the agent is dead
//	host        what a node leaves on its host, and what it says of others there
//	carry       much data, large packets, hosts that move, devices that vanish
//	routes      networks behind routers, and exit nodes: approved, used, revoked, killed
//	renew       node keys that change while packets are counted; a copied state directory
//	look        counters for wg, metrics, systemd, settings
//
// Every test ends with the same questions: did all programs that still ran stop cleanly when they were asked to, and is there
// any secret in what they and the commands have printed and logged?
//
// The tests take root, or a system that lets people have user namespaces; see scripts/lab/labtest for what becomes of them
// elsewhere.
package e2e
