//go:build linux

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxFrames bounds the frames that a capture keeps.
const maxFrames = 1 << 20

// Frame is a captured Ethernet frame.
type Frame struct {
	At   time.Time
	Data []byte
}

// Capture records the frames on a device in both directions.
type Capture struct {
	file *os.File
	done chan struct{}
	stop sync.Once

	mu     sync.Mutex
	frames []Frame
	missed bool
	err    error
}

// CaptureWire records the traffic on the cable of a port at its far end: what the host really sends and receives, whatever
// its own firewall and sockets report.
func (p *Port) CaptureWire() (*Capture, error) {
	return p.host.world.capture(p.host.world.router, p.far.Attrs().Name)
}

// Capture records what a device of the host sees.
func (h *Host) Capture(device string) (*Capture, error) { return h.world.capture(h.ns, device) }

func (w *World) capture(ns *namespace, device string) (*Capture, error) {
	c := &Capture{done: make(chan struct{})}
	err := ns.do(func() error {
		fd, err := packetSocket(device, unix.ETH_P_ALL)
		if err != nil {
			return err
		}
		c.file = os.NewFile(uintptr(fd), "capture on "+device)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("capture on %s: %w", device, err)
	}
	go c.run()
	w.onClose(func() error {
		_, err := c.Stop()
		return err
	})
	return c, nil
}

// packetSocket opens a packet socket on a device of the calling thread's network.
func packetSocket(device string, protocol uint16) (int, error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return 0, err
	}
	// Start with protocol 0, so that no frames of other devices arrive before the bind.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
	if errors.Is(err, unix.EPERM) { // in a user namespace the system's limit applies
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 32<<20)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian(protocol), Ifindex: link.Index})
	}
	if err != nil {
		return 0, errors.Join(os.NewSyscallError("set up a packet socket", err), unix.Close(fd))
	}
	return fd, nil
}

func bigEndian(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// run reads until Stop, and then drains the socket.
func (c *Capture) run() {
	defer close(c.done)
	buf := make([]byte, 1<<17)
	for {
		n, err := c.file.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.drain(buf)
			return
		}
		if errors.Is(err, unix.ENETDOWN) {
			continue // the device is down; it may come back
		}
		if err != nil {
			c.mu.Lock()
			c.err = err
			c.mu.Unlock()
			return
		}
		c.keep(buf[:n])
	}
}

func (c *Capture) keep(frame []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.frames) == maxFrames {
		c.missed = true
		return
	}
	c.frames = append(c.frames, Frame{At: time.Now(), Data: append([]byte(nil), frame...)})
}

// drain reads what is left in the socket and checks whether the kernel dropped frames.
func (c *Capture) drain(buf []byte) {
	raw, err := c.file.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			for {
				n, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
				if err != nil {
					break
				}
				c.keep(buf[:n])
			}
			if s, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || s.Drops > 0 {
				c.mu.Lock()
				c.missed = true
				c.mu.Unlock()
			}
		})
	}
	if err != nil {
		c.mu.Lock()
		c.err = err
		c.mu.Unlock()
	}
}

// Frames returns the frames captured so far.
func (c *Capture) Frames() []Frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.frames[:len(c.frames):len(c.frames)]
}

// Stop ends the capture and returns the frames, with an error if it may have missed any. It may be called more than once.
func (c *Capture) Stop() ([]Frame, error) {
	c.stop.Do(func() {
		if err := c.file.SetReadDeadline(time.Unix(1, 0)); err != nil {
			c.mu.Lock()
			c.err = err
			c.mu.Unlock()
			_ = c.file.Close()
		}
		<-c.done
		_ = c.file.Close()
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.missed {
		return c.frames, errors.Join(c.err, errors.New("the capture has missed frames"))
	}
	return c.frames, c.err
}

// Addrs returns the source and destination of the IP packet or ARP message in the frame.
func (f Frame) Addrs() (src, dst netip.Addr, ok bool) {
	if len(f.Data) < 14 {
		return src, dst, false
	}
	kind, b := binary.BigEndian.Uint16(f.Data[12:]), f.Data[14:]
	switch {
	case kind == unix.ETH_P_IP && len(b) >= 20:
		return netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), true
	case kind == unix.ETH_P_IPV6 && len(b) >= 40:
		return netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), true
	case kind == unix.ETH_P_ARP && len(b) >= 28:
		return netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28])), true
	}
	return src, dst, false
}

// From reports whether the frame was sent by a port.
func (f Frame) From(p *Port) bool {
	return len(f.Data) >= 14 && net.HardwareAddr(f.Data[6:12]).String() == p.MAC.String()
}

// Inject sends an IP packet from the port to a neighbour unchanged, whatever its addresses, and bypassing the sender's own
// firewall.
func (p *Port) Inject(to net.HardwareAddr, packet []byte) error {
	if len(packet) == 0 || len(to) != 6 {
		return errors.New("inject: want a packet and an Ethernet address")
	}
	kind := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		kind = unix.ETH_P_IPV6
	}
	frame := append(append(append([]byte(nil), to...), p.MAC...), byte(kind>>8), byte(kind))
	return p.InjectFrame(append(frame, packet...))
}

// InjectFrame sends an Ethernet frame from the port unchanged.
func (p *Port) InjectFrame(frame []byte) error {
	return p.host.Do(func() error {
		fd, err := packetSocket(p.Device, 0)
		if err != nil {
			return err
		}
		_, err = unix.Write(fd, frame)
		return errors.Join(os.NewSyscallError("send a frame", err), unix.Close(fd))
	})
}
