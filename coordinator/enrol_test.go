package coordinator

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

func refusedWith(t *testing.T, err error, code redoubtv1.Refusal_Code, text string) {
	t.Helper()
	if codeOf(err) != code || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want %v with %q", err, code, text)
	}
}

func TestTokens(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		const generic = "the join code is not valid"
		ctx := context.Background()
		unknown, err := key.NewToken(random)
		if err != nil {
			t.Fatal(err)
		}
		once := r.code(&redoubtv1.CreateTokenRequest{})
		if err := r.machine("a").enrol(once); err != nil {
			t.Fatal(err)
		}
		spent := r.machine("b").enrol(once)
		refusedWith(t, spent, redoubtv1.Refusal_CODE_TOKEN, "used by another machine")

		// Without the secret, a known token is indistinguishable from an unknown one.
		forged := once
		forged.Secret = unknown
		made := r.machine("c").enrol(forged)
		refusedWith(t, made, redoubtv1.Refusal_CODE_TOKEN, generic)
		m := r.machine("d")
		c, sum, challenge, err := m.ask(once)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.send(up(m.proof(c, m.node, wire.DomainEnrol, sum, challenge, &unknown))); err != nil {
			t.Fatal(err)
		}
		stolen := m.take(c)
		c.t.Close()
		if stolen.Error() != made.Error() {
			t.Errorf("a token that is known is told from one that is not:\n%v\n%v", stolen, made)
		}

		short := r.code(&redoubtv1.CreateTokenRequest{TtlSeconds: 60})
		time.Sleep(61 * time.Second)
		refusedWith(t, r.machine("e").enrol(short), redoubtv1.Refusal_CODE_TOKEN, "expired")

		revoked := r.code(&redoubtv1.CreateTokenRequest{Reusable: true})
		list, err := r.co.Admin().ListTokens(ctx, &redoubtv1.ListTokensRequest{})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(list.GetTokens(), func(x *redoubtv1.Token) bool { return x.GetReusable() })
		if _, err := r.co.Admin().RevokeToken(ctx, &redoubtv1.RevokeTokenRequest{Id: list.GetTokens()[i].GetId()}); err != nil {
			t.Fatal(err)
		}
		refusedWith(t, r.machine("f").enrol(revoked), redoubtv1.Refusal_CODE_TOKEN, "revoked")
		if n := r.co.directory.Snapshot().Len(); n != 1 {
			t.Errorf("%d nodes, want 1", n)
		}
	})
}

func TestOneTokenManyMachines(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		code := r.code(&redoubtv1.CreateTokenRequest{})
		var mu sync.Mutex
		var won, spent int
		var all sync.WaitGroup
		for range 64 {
			m := r.machine("same")
			all.Go(func() {
				err := m.enrol(code)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					won++
				case codeOf(err) == redoubtv1.Refusal_CODE_TOKEN:
					spent++
				default:
					t.Error(err)
				}
			})
		}
		all.Wait()
		if won != 1 || spent != 63 {
			t.Errorf("%d enrolled, %d refused", won, spent)
		}
	})
}

// TestLostReplies loses the connection after each message of an enrolment; the machine retries with the same keys and ends up
// enrolled once.
func TestLostReplies(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		code := r.code(&redoubtv1.CreateTokenRequest{})
		m := r.machine("m")
		c, err := r.upgrade(nil) // nothing is sent
		if err != nil {
			t.Fatal(err)
		}
		c.t.Close()
		c, _, _, err = m.ask(code) // the challenge is lost
		if err != nil {
			t.Fatal(err)
		}
		c.t.Close()
		c, sum, challenge, err := m.ask(code) // the result is lost
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.send(up(m.proof(c, m.node, wire.DomainEnrol, sum, challenge, &code.Secret))); err != nil {
			t.Fatal(err)
		}
		c.t.Close()
		settle()
		if err := m.enrol(code); err != nil {
			t.Fatal(err)
		}
		first := m.cert
		if err := m.enrol(code); err != nil || m.cert.ID != first.ID || m.cert.Sequence != first.Sequence {
			t.Errorf("again: %v, %+v", err, m.cert)
		}
		if n := r.co.directory.Snapshot().Len(); n != 1 {
			t.Errorf("%d nodes, want 1", n)
		}
		refusedWith(t, r.machine("other").enrol(code), redoubtv1.Refusal_CODE_TOKEN, "used by another machine")
	})
}

func TestProofsThatDoNotHold(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		code := r.code(&redoubtv1.CreateTokenRequest{Reusable: true})
		victim := r.join("victim", &redoubtv1.CreateTokenRequest{})

		try := func(name string, want redoubtv1.Refusal_Code, change func(m *machine, c *wireConn, p *redoubtv1.Proof)) {
			t.Helper()
			m := r.machine("m")
			c, sum, challenge, err := m.ask(code)
			if err != nil {
				t.Fatal(err)
			}
			defer c.t.Close()
			p := m.proof(c, m.node, wire.DomainEnrol, sum, challenge, &code.Secret)
			change(m, c, p)
			if _, err := c.send(up(p)); err != nil && want != 0 {
				t.Fatal(err)
			}
			if err := m.take(c); codeOf(err) != want {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		}
		flip := func(b []byte) { b[len(b)-1] ^= 1 }
		try("MAC", redoubtv1.Refusal_CODE_PROOF, func(_ *machine, _ *wireConn, p *redoubtv1.Proof) { flip(p.GetNodeKeyMac()) })
		try("device", redoubtv1.Refusal_CODE_PROOF, func(_ *machine, _ *wireConn, p *redoubtv1.Proof) { flip(p.GetDeviceSignature()) })
		try("token", redoubtv1.Refusal_CODE_TOKEN, func(_ *machine, _ *wireConn, p *redoubtv1.Proof) { flip(p.GetTokenSignature()) })
		try("no token", redoubtv1.Refusal_CODE_TOKEN, func(_ *machine, _ *wireConn, p *redoubtv1.Proof) { p.TokenSignature = nil })
		try("posture", redoubtv1.Refusal_CODE_PROOF, func(_ *machine, _ *wireConn, p *redoubtv1.Proof) { p.Posture = []byte("x") })
		try("evidence", redoubtv1.Refusal_CODE_PROOF, func(_ *machine, _ *wireConn, p *redoubtv1.Proof) { p.Evidence = []byte("x") })
		try("late", redoubtv1.Refusal_CODE_UNSPECIFIED, func(*machine, *wireConn, *redoubtv1.Proof) { time.Sleep(21 * time.Second) })

		// A proof is valid only on its connection, and for one challenge.
		var replay *redoubtv1.Proof
		try("the proof that is replayed", 0, func(_ *machine, _ *wireConn, p *redoubtv1.Proof) { replay = pb.Clone(p).(*redoubtv1.Proof) })
		try("replay", redoubtv1.Refusal_CODE_PROOF, func(_ *machine, _ *wireConn, p *redoubtv1.Proof) { pb.Reset(p); pb.Merge(p, replay) })

		// Another node's WireGuard key: known, but not held.
		m := r.machine("thief")
		mine := m.node
		m.node = victim.node
		c, sum, challenge, err := m.ask(code)
		if err != nil {
			t.Fatal(err)
		}
		held := m.proof(c, m.node, wire.DomainEnrol, sum, challenge, &code.Secret)
		m.node = mine
		stranger := m.proof(c, m.node, wire.DomainEnrol, sum, challenge, &code.Secret)
		held.NodeKeyMac = stranger.GetNodeKeyMac()
		if _, err := c.send(up(held)); err != nil {
			t.Fatal(err)
		}
		refusedWith(t, m.take(c), redoubtv1.Refusal_CODE_PROOF, "node key")
		c.t.Close()
		// And actually held: a copied disk.
		m.node = victim.node
		refusedWith(t, m.enrol(code), redoubtv1.Refusal_CODE_KEY_USED, "copied")
		m = r.machine("clone")
		m.device = victim.device
		refusedWith(t, m.enrol(code), redoubtv1.Refusal_CODE_KEY_USED, "copied")
	})
}

func TestHellosThatMakeNoSense(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		m := r.machine("m")
		good := func() *redoubtv1.Hello {
			h := m.hello()
			h.Purpose = &redoubtv1.Hello_Enrol{Enrol: &redoubtv1.Enrol{
				Evidence: []string{"token"}, DevicePublic: m.device.Device().Bytes(), NodePublic: m.node.Public().Bytes(), TokenPublic: r.code(&redoubtv1.CreateTokenRequest{}).Secret.Public().Bytes(),
			}}
			return h
		}
		try := func(name string, want redoubtv1.Refusal_Code, text string, up *redoubtv1.Up) {
			t.Helper()
			c, err := r.upgrade(nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.t.Close()
			if _, err := c.send(up); err != nil {
				t.Fatal(err)
			}
			if _, err = c.read(); codeOf(err) != want || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v, want %v with %q", name, err, want, text)
			}
		}
		hello := func(change func(*redoubtv1.Hello)) *redoubtv1.Up {
			h := good()
			change(h)
			return &redoubtv1.Up{Message: &redoubtv1.Up_Hello{Hello: h}}
		}
		malformed := redoubtv1.Refusal_CODE_MALFORMED
		try("no hello", malformed, "begins with a hello", &redoubtv1.Up{Message: &redoubtv1.Up_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{}}})
		try("proof first", malformed, "begins with a hello", &redoubtv1.Up{Message: &redoubtv1.Up_Proof{Proof: &redoubtv1.Proof{NodeKeyMac: make([]byte, 32), DeviceSignature: make([]byte, 70)}}})
		try("no purpose", malformed, "", hello(func(h *redoubtv1.Hello) { h.Purpose = nil }))
		try("short device key", malformed, "", hello(func(h *redoubtv1.Hello) { h.GetEnrol().DevicePublic = h.GetEnrol().GetDevicePublic()[:64] }))
		try("low-order node key", malformed, "", hello(func(h *redoubtv1.Hello) { h.GetEnrol().NodePublic = make([]byte, 32) }))
		try("newer protocol", redoubtv1.Refusal_CODE_VERSION, "update the older", hello(func(h *redoubtv1.Hello) { h.ProtocolMin, h.ProtocolMax = 7, 9 }))
		try("no version", malformed, "", hello(func(h *redoubtv1.Hello) { h.ProtocolMin, h.ProtocolMax = 0, 0 }))
		try("evidence that nobody takes", redoubtv1.Refusal_CODE_PROOF, "none of the kinds", hello(func(h *redoubtv1.Hello) { h.GetEnrol().Evidence = []string{"promise"} }))
		try("no token", redoubtv1.Refusal_CODE_PROOF, "no join token", hello(func(h *redoubtv1.Hello) { h.GetEnrol().TokenPublic = nil }))
		try("attach without a certificate", redoubtv1.Refusal_CODE_PROOF, "enrol first", hello(func(h *redoubtv1.Hello) {
			h.Purpose = &redoubtv1.Hello_Attach{Attach: &redoubtv1.Attach{Applied: wire.FromVersion(proto.Version{Epoch: 1, N: 1})}}
		}))

		c, err := r.upgrade(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.t.Write([]byte{0, 0, 0, 3, 0xff, 0xff, 0xff}); err != nil {
			t.Fatal(err)
		}
		_, err = c.read()
		refusedWith(t, err, malformed, "")
		c.t.Close()
		if c, err = r.upgrade(nil); err != nil {
			t.Fatal(err)
		}
		if _, err := c.t.Write([]byte{0, 1, 0, 1}); err != nil { // 64 KiB and one byte
			t.Fatal(err)
		}
		_, err = c.read()
		refusedWith(t, err, malformed, "length")
		c.t.Close()
	})
}

func TestANodeDoesNotEnrolAsItself(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		c, err := r.upgrade(m.leaf())
		if err != nil {
			t.Fatal(err)
		}
		defer c.t.Close()
		hello := m.hello()
		hello.Purpose = &redoubtv1.Hello_Enrol{Enrol: &redoubtv1.Enrol{
			Evidence: []string{"token"}, DevicePublic: m.device.Device().Bytes(), NodePublic: m.node.Public().Bytes(),
			TokenPublic: r.code(&redoubtv1.CreateTokenRequest{}).Secret.Public().Bytes(),
		}}
		if _, err := c.send(&redoubtv1.Up{Message: &redoubtv1.Up_Hello{Hello: hello}}); err != nil {
			t.Fatal(err)
		}
		_, err = c.read()
		refusedWith(t, err, redoubtv1.Refusal_CODE_MALFORMED, "does not enrol with it")
	})
}

func TestACoordinatorWithAnotherRootIsNotAsked(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		code := r.code(&redoubtv1.CreateTokenRequest{})
		code.Root[0] ^= 1
		raw, err := r.net.dial()
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		err = tls.Client(raw, cert.ClientConfig(nil, cert.ForJoining(code.Root, time.Now))).Handshake()
		if !errors.Is(err, cert.ErrPin) {
			t.Errorf("a machine with another root in its code: %v", err)
		}
	})
}

// TestSlowEnrolment checks that a machine that falls silent at any step is cut off, and occupies no place after that.
func TestSlowEnrolment(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		code := r.code(&redoubtv1.CreateTokenRequest{})
		raw, err := r.net.dial()
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := raw.Read(make([]byte, 1)); err == nil || time.Since(start) != 10*time.Second {
			t.Errorf("a connection without TLS: %v after %v", err, time.Since(start))
		}
		tlsOnly, err := r.dial(nil)
		if err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		_, err = tlsOnly.Read(make([]byte, 1))
		if d := time.Since(start); err == nil || d > 10*time.Second+time.Second {
			t.Errorf("a connection without a request: %v after %v", err, d)
		}
		tlsOnly.Close()
		upgraded, err := r.upgrade(nil)
		if err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		if _, err := upgraded.read(); err == nil || time.Since(start) != 10*time.Second {
			t.Errorf("a stream without a hello: %v after %v", err, time.Since(start))
		}
		upgraded.t.Close()
		c, _, _, err := r.machine("m").ask(code)
		if err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		if _, err := c.read(); err == nil || errors.As(err, new(refused)) || time.Since(start) != 20*time.Second {
			t.Errorf("a challenge without a proof: %v after %v", err, time.Since(start))
		}
		c.t.Close()
		raw.Close()
		synctest.Wait()
	})
}
