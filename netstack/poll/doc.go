// Package poll waits for descriptors with the runtime's poller, only when somebody waits.
//
// A descriptor that is with the runtime's poller itself wakes a thread whenever anything happens to it: for each packet that
// comes while the ones before it are still being read, and for each packet that was sent and has left the host. Nobody waits
// for that, and it costs as much as to move the packet. So a File has an epoll instance of its own for each direction,
// switched on for one wait, and only those are with the poller:
//
//	runtime's poller ◄── epoll, EPOLLIN  | EPOLLONESHOT ◄─┐
//	                 ◄── epoll, EPOLLOUT | EPOLLONESHOT ◄─┴─ descriptor
package poll
