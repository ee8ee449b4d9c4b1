// Package poll waits for file descriptors with the runtime's poller, but only while somebody waits.
//
// A descriptor registered with the runtime's poller directly wakes a thread on every event: for each packet that arrives while
// earlier ones are still being read, and for each sent packet that has left the host. Nobody waits for those, and they cost as
// much as moving the packet. So a File has its own epoll instance for each direction, armed for one wait, and only those
// instances are registered with the poller:
//
//	runtime's poller ◄── epoll, EPOLLIN  | EPOLLONESHOT ◄─┐
//	                 ◄── epoll, EPOLLOUT | EPOLLONESHOT ◄─┴─ descriptor
package poll
