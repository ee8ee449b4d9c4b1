package control

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/key"
)

// endless is a connection whose peer never stops sending.
type endless struct {
	net.Conn
	taken atomic.Int64
}

func (e *endless) Read(b []byte) (int, error) {
	e.taken.Add(int64(len(b)))
	return len(b), nil
}

func (e *endless) SetDeadline(time.Time) error { return nil }
func (e *endless) Close() error                { return nil }

// TestHandshakeIsBounded checks that little is buffered for a peer before its handshake is complete.
func TestHandshakeIsBounded(t *testing.T) {
	l := newLobby(8, 2)
	c := &endless{}
	g, ok := l.enter(c, time.Now().Add(time.Minute))
	if !ok {
		t.Fatal("no place")
	}
	err := g.shake(func() error {
		b := make([]byte, 4096)
		for range 10_000 {
			if _, err := g.Read(b); err != nil {
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, errTooMuch) || c.taken.Load() > maxHandshake {
		t.Errorf("%v after %d bytes, want at most %d", err, c.taken.Load(), maxHandshake)
	}
	if _, err := g.Read(make([]byte, 1)); err != nil {
		t.Errorf("after the handshake: %v", err)
	}
	g.Close()
}

// TestHandshakeWithTooManyCertificates presents a chain that would have to be buffered whole before it can be examined.
func TestHandshakeWithTooManyCertificates(t *testing.T) {
	near, far := net.Pipe()
	l := newLobby(8, 2)
	g, _ := l.enter(near, time.Now().Add(10*time.Second))
	config := selfSigned(t)
	done := make(chan error, 1)
	go func() {
		done <- g.shake(tls.Server(g, config).Handshake)
		g.Close()
	}()
	long := tls.Certificate{PrivateKey: config.Certificates[0].PrivateKey, Certificate: [][]byte{config.Certificates[0].Certificate[0]}}
	for range 40 {
		long.Certificate = append(long.Certificate, bytes.Repeat([]byte{7}, 4<<10))
	}
	client := tls.Client(far, &tls.Config{
		InsecureSkipVerify:   true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &long, nil },
	})
	_ = client.Handshake()
	if err := <-done; !errors.Is(err, errTooMuch) {
		t.Errorf("160 KiB of certificates: %v", err)
	}
	far.Close()
}

// selfSigned returns a TLS configuration with a certificate that is not verified here.
func selfSigned(t *testing.T) *tls.Config {
	t.Helper()
	device, err := key.NewDevice(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, device.Public(), device)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: device}},
		ClientAuth:   tls.RequestClientCert, MinVersion: tls.VersionTLS13,
	}
}
