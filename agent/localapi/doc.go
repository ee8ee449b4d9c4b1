// Package localapi is how the programs of this machine talk to the agent: Connect over a unix socket.
//
//	redoubt status ──► unix socket, mode 0666 ──► who is it? (SO_PEERCRED, asked of the kernel)
//	                                                 everyone: Status, Watch, Ping, Whois, Why, Posture,
//	                                                 Underlay
//	                                                 root, operator: Up, Down as well
//
// A web page cannot get here, not even by way of a program that forwards to the socket: requests must name the
// host "redoubt" and no origin. Bodies are bounded, and so is the number of connections each user may hold, so that
// nobody can keep the administrator out.
package localapi
