package noise

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// TestCookiesOfTheReference checks MACs and cookies against another implementation, in both directions.
func TestCookiesOfTheReference(t *testing.T) {
	a, b := pairOf(t, scalar(1), scalar(2))
	now, src := time.Now(), []byte("192.0.2.1:1")

	// We receive the cookie.
	var checker device.CookieChecker
	checker.Init(device.NoisePublicKey(b.Local.Public()))
	var jar Jar
	first := initiation(t, a, &jar, now)
	if !checker.CheckMAC1(first) || checker.CheckMAC2(first, src) {
		t.Fatal("the reference does not take our mac1, or takes an empty mac2")
	}
	r, err := checker.CreateReply(first, 77, src)
	if err != nil {
		t.Fatal(err)
	}
	var reply [CookieReplySize]byte
	binary.LittleEndian.PutUint32(reply[:], r.Type)
	binary.LittleEndian.PutUint32(reply[4:], r.Receiver)
	copy(reply[8:], r.Nonce[:])
	copy(reply[8+nonceSize:], r.Cookie[:])
	if err := jar.Take(now, a.Remote, reply[:]); err != nil {
		t.Fatal(err)
	}
	if first = initiation(t, a, &jar, now); !checker.CheckMAC1(first) || !checker.CheckMAC2(first, src) {
		t.Error("the reference does not take our mac2")
	}

	// We give the cookie.
	var generator device.CookieGenerator
	generator.Init(device.NoisePublicKey(b.Local.Public()))
	var c cookies
	second := bytes.Clone(first)
	clear(second[len(second)-2*macSize:])
	generator.AddMacs(second)
	if !b.Local.CheckMAC1(second) {
		t.Fatal("we do not take the reference's mac1")
	}
	if err := c.reply(now, &reply, b.Local, random, second, src); err != nil {
		t.Fatal(err)
	}
	m := device.MessageCookieReply{Type: TypeCookieReply, Receiver: binary.LittleEndian.Uint32(reply[4:])}
	copy(m.Nonce[:], reply[8:])
	copy(m.Cookie[:], reply[8+nonceSize:])
	if !generator.ConsumeReply(&m) {
		t.Fatal("the reference does not take our cookie")
	}
	clear(second[len(second)-2*macSize:])
	generator.AddMacs(second)
	if !c.check(now, second, src) || c.check(now, second, []byte("192.0.2.2:1")) {
		t.Error("we do not take the reference's mac2, or take it from elsewhere")
	}
}
