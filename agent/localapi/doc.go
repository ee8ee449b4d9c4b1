// Package localapi is how programs on this machine talk to the agent: Connect over a unix socket.
//
//	redoubt status ──► unix socket, mode 0666 ──► who is it? (SO_PEERCRED, from the kernel)
//	                                                 everyone: Status, Watch, Ping, Whois, Why, Posture,
//	                                                 Underlay
//	                                                 root, operator: also Up, Down, Posture with refresh
//
// A web page cannot get here, not even through a program that forwards to the socket: requests must name the host "redoubt"
// and no origin. Bodies are limited, and so is the number of connections each user but root may hold, so that nobody can
// lock the administrator out.
package localapi
