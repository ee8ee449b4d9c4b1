package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

// small is the payload size of a small packet.
const small = 64

// outcome is what happened to small packets, per second.
type outcome struct {
	received  float64 // by a program that reads each packet with its own system call
	delivered float64 // received, or dropped because that program was too slow
	cpu       float64 // microseconds of the daemons per delivered packet
}

// datagrams floods small packets, many per system call.
func datagrams(ctx context.Context, p direction, d time.Duration) (outcome, error) {
	in, err := p.to.ListenUDP(netip.AddrPortFrom(p.target, 5202))
	if err != nil {
		return outcome{}, err
	}
	out, err := p.from.Dial(ctx, "udp", in.LocalAddr().String())
	if err != nil {
		return outcome{}, errors.Join(err, in.Close())
	}
	var got atomic.Int64
	var programs sync.WaitGroup
	programs.Go(func() {
		buf := make([]byte, 2048)
		for {
			if _, err := in.Read(buf); err != nil {
				return
			}
			got.Add(1)
		}
	})
	cpu := cpuSeconds(p.pids)
	begin := time.Now()
	end := begin.Add(d)
	batch := make([]ipv4.Message, 64)
	for i := range batch {
		batch[i].Buffers = [][]byte{make([]byte, small)}
	}
	for sender := ipv4.NewPacketConn(out.(net.PacketConn)); time.Now().Before(end); { //nolint:errcheck // that is what UDP has
		_, _ = sender.WriteBatch(batch, 0) // packets without room are lost like others
	}
	took := time.Since(begin).Seconds()
	time.Sleep(50 * time.Millisecond) // packets in flight arrive
	cpu = cpuSeconds(p.pids) - cpu
	dropped, err := dropsOf(p.to, 5202)
	err = errors.Join(err, in.Close(), out.Close())
	programs.Wait()
	n := float64(got.Load())
	if n == 0 {
		return outcome{}, errors.Join(err, errors.New("no packet came"))
	}
	return outcome{n / took, (n + dropped) / took, cpu / (n + dropped) * 1e6}, err
}

// dropsOf returns how many packets the UDP socket on a port had no room for.
func dropsOf(h *lab.Host, port uint16) (total float64, err error) {
	err = h.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/udp")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 13 || !strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
				continue
			}
			n, err := strconv.ParseFloat(f[12], 64)
			if err != nil {
				return err
			}
			total += n
		}
		return nil
	})
	return total, err
}

// roundTrips sends small packets back and forth, one at a time, and returns the median and the 99th percentile of the round
// trip in microseconds.
func roundTrips(ctx context.Context, p direction, d time.Duration) (p50, p99 float64, err error) {
	far, err := p.to.ListenUDP(netip.AddrPortFrom(p.target, 5203))
	if err != nil {
		return 0, 0, err
	}
	c, err := p.from.Dial(ctx, "udp", far.LocalAddr().String())
	if err != nil {
		return 0, 0, errors.Join(err, far.Close())
	}
	var echo sync.WaitGroup
	echo.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := far.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			_, _ = far.WriteToUDPAddrPort(buf[:n], from)
		}
	})
	var all []float64
	buf := make([]byte, small)
	for begin := time.Now(); err == nil && time.Since(begin) < d; {
		sent := time.Now()
		if err = c.SetDeadline(sent.Add(time.Second)); err != nil {
			break
		}
		if _, err = c.Write(buf); err != nil {
			break
		}
		if _, err = c.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil // lost
			continue
		}
		all = append(all, float64(time.Since(sent).Nanoseconds())/1e3)
	}
	err = errors.Join(err, far.Close(), c.Close())
	echo.Wait()
	if len(all) == 0 {
		return 0, 0, errors.Join(err, errors.New("no packet came back"))
	}
	slices.Sort(all)
	return all[len(all)/2], all[len(all)*99/100], err
}
