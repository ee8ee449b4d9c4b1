package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

const (
	offered = 500e6 // bit/s
	inner   = 1400  // bytes per packet
	// spoofed is how many initiations there are, each from a different address, which are sent over and over. All have a
	// valid mac1, so that each costs the receiver as much as a stranger's first message.
	spoofed = 4096
)

// stream is the outcome for an established flow.
type stream struct {
	arrived float64 // share of the packets offered
	floods  float64 // initiations per second sent meanwhile
	cpu     float64 // of the daemons, in cores
}

// flood measures how handshakes from strangers affect an established flow.
func flood(ctx context.Context, bin string, rounds int, d time.Duration) (err error) {
	var pairs []*pair
	defer func() {
		for _, p := range pairs {
			err = errors.Join(err, p.close())
		}
	}()
	strangers := map[*pair]*stranger{}
	for _, make := range []func() (*pair, error){
		func() (*pair, error) { return stockPair(ctx, bin) },
		func() (*pair, error) { return redoubtPair(ctx, bin, "Redoubt, filter on") },
	} {
		p, err := make()
		if err != nil {
			return err
		}
		pairs = append(pairs, p)
		if strangers[p], err = newStranger(p); err != nil {
			return err
		}
		defer strangers[p].close()
		if _, err := flows(ctx, p.there(), 1, 300*time.Millisecond); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	quiet, flooded := map[*pair][]stream{}, map[*pair][]stream{}
	for range rounds {
		for _, p := range pairs {
			s, err := offer(ctx, p, offered, inner, d)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			quiet[p] = append(quiet[p], s)
			stop := strangers[p].begin()
			s, err = offer(ctx, p, offered, inner, d)
			s.floods = stop()
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			flooded[p] = append(flooded[p], s)
		}
	}
	arrived := func(s stream) float64 { return 100 * s.arrived }
	cpu := func(s stream) float64 { return s.cpu }
	fmt.Printf("An established flow, offered %.0f Mbit/s of UDP, medians of %d interleaved rounds; both ends and the flood on this machine\n\n", offered/1e6, rounds)
	fmt.Println("| | arrived, no flood, % | daemons' cores | arrived, flooded, % | daemons' cores | initiations per second | peak RSS MB |")
	fmt.Println("| --- | --- | --- | --- | --- | --- | --- |")
	for _, p := range pairs {
		fmt.Printf("| %s | %.1f | %.2f | %.1f | %.2f | %.0f | %.0f |\n", p.name, median(quiet[p], arrived), median(quiet[p], cpu),
			median(flooded[p], arrived), median(flooded[p], cpu), median(flooded[p], func(s stream) float64 { return s.floods }), peakRSS(p.pids))
	}
	return nil
}

// offer sends packets of size bytes at a fixed rate in bit/s for a while, and counts what arrives.
func offer(ctx context.Context, p *pair, rate float64, size int, d time.Duration) (s stream, err error) {
	way := p.there()
	sink, err := way.to.ListenUDP(netip.AddrPortFrom(way.target, 5300))
	if err != nil {
		return s, err
	}
	defer func() { _ = sink.Close() }()
	if err := sink.SetReadBuffer(4 << 20); err != nil {
		return s, err
	}
	c, err := way.from.Dial(ctx, "udp", sink.LocalAddr().String())
	if err != nil {
		return s, err
	}
	defer c.Close()
	got := make(chan int, 1)
	go func() {
		buf, n := make([]byte, 2048), 0
		for {
			if _, err := sink.Read(buf); err != nil {
				got <- n
				return
			}
			n++
		}
	}()
	payload := make([]byte, size-28)
	begin, cpu, sent := time.Now(), cpuSeconds(p.pids), 0
	for {
		past := time.Since(begin)
		if past >= d {
			break
		}
		for due := int(past.Seconds() * rate / 8 / float64(size)); sent < due; sent++ {
			// A packet that the device has no room for is lost, but counts as offered.
			_, _ = c.Write(payload)
		}
		time.Sleep(time.Millisecond)
	}
	s.cpu = (cpuSeconds(p.pids) - cpu) / d.Seconds()
	if err := sink.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		return s, err
	}
	s.arrived = float64(<-got) / float64(sent)
	return s, nil
}

// stranger is a host on the LAN that sends spoofed packets.
type stranger struct {
	fd     int
	frames [][]byte
}

func newStranger(p *pair) (*stranger, error) {
	h, err := p.world.AddHost("stranger", p.hosts[1].Ports[0].LAN)
	if err != nil {
		return nil, err
	}
	s := &stranger{}
	if s.frames, err = initiations(p, h); err != nil {
		return nil, err
	}
	return s, h.Do(func() error {
		device, err := net.InterfaceByName(h.Ports[0].Device)
		if err != nil {
			return err
		}
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(s.fd, &unix.SockaddrLinklayer{Ifindex: device.Index})
	})
}

func (s *stranger) close() { _ = unix.Close(s.fd) }

// initiations returns handshake initiations to the far end, as Ethernet frames.
func initiations(p *pair, from *lab.Host) ([][]byte, error) {
	far, err := noise.NewRemote(p.key.Array())
	if err != nil {
		return nil, err
	}
	own, err := noise.NewLocal([32]byte{8: 99})
	if err != nil {
		return nil, err
	}
	link, err := noise.NewPair(own, far)
	if err != nil {
		return nil, err
	}
	var msg [noise.InitiationSize]byte
	if _, err := link.Initiate(&msg, [32]byte{8: 5}, 0, noise.Stamp(time.Now())); err != nil {
		return nil, err
	}
	port := p.hosts[1].Ports[0]
	header := append(append(append([]byte(nil), port.MAC...), from.Ports[0].MAC...), byte(unix.ETH_P_IP>>8), byte(unix.ETH_P_IP&0xff))
	out := make([][]byte, spoofed)
	for n := range out {
		binary.LittleEndian.PutUint32(msg[4:], uint32(n))
		new(noise.Jar).Sign(time.Now(), far, msg[:])
		src := port.V4.As4()
		src[3] = byte(100 + n%100) // on the LAN, so that replies do not leave it
		packet := lab.UDPPacket(netip.AddrPortFrom(netip.AddrFrom4(src), uint16(1024+n)), p.at, msg[:])
		out[n] = append(append([]byte(nil), header...), packet...)
	}
	return out, nil
}

// begin sends as fast as one core can until stop is called, which returns how many were sent per second.
func (s *stranger) begin() (stop func() float64) {
	quit, done := make(chan struct{}), make(chan int)
	begin := time.Now()
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		sent := 0
		for {
			select {
			case <-quit:
				done <- sent
				return
			default:
			}
			for _, f := range s.frames[:256] {
				if _, err := unix.Write(s.fd, f); err == nil {
					sent++
				}
			}
			s.frames = append(s.frames[256:], s.frames[:256]...)
		}
	}()
	return func() float64 {
		close(quit)
		return float64(<-done) / time.Since(begin).Seconds()
	}
}
