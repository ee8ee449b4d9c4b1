package noise

import (
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

// cookieTime is how long a cookie is valid, and how long the secret behind cookies lasts.
const cookieTime = 120 * time.Second

const nonceSize = chacha20poly1305.NonceSizeX

// mac returns the 16-byte keyed BLAKE2s of data.
func mac(key, data []byte) (sum [macSize]byte) {
	h, err := blake2s.New128(key)
	if err != nil {
		panic("noise: keyed BLAKE2s: " + err.Error())
	}
	h.Write(data)
	h.Sum(sum[:0])
	return sum
}

// macs returns the two MAC fields of a message that has them.
func macs(msg []byte) (mac1, mac2 []byte) {
	n := len(msg)
	return msg[n-2*macSize : n-macSize], msg[n-macSize:]
}

// signable reports whether a message is of a type that has MACs.
func signable(msg []byte) bool {
	return (len(msg) == InitiationSize && binary.LittleEndian.Uint32(msg) == TypeInitiation) ||
		(len(msg) == ResponseSize && binary.LittleEndian.Uint32(msg) == TypeResponse)
}

// CheckMAC1 reports whether a message comes from somebody who knows this key.
func (l *Local) CheckMAC1(msg []byte) bool {
	if !signable(msg) {
		return false
	}
	have, _ := macs(msg)
	want := mac(l.mac1[:], msg[:len(msg)-2*macSize])
	return subtle.ConstantTimeCompare(want[:], have) == 1
}

// cookies makes and checks cookies, which prove that a sender receives packets at its address.
type cookies struct {
	secret [keySize]byte
	made   time.Time
}

func (c *cookies) good(now time.Time) bool {
	return !c.made.IsZero() && now.Sub(c.made) < cookieTime
}

// check reports whether msg has a mac2 made with the cookie for src.
func (c *cookies) check(now time.Time, msg, src []byte) bool {
	_, have := macs(msg)
	// A sender without a cookie writes zeros. In a flood, checking that first saves two of three MACs.
	if !c.good(now) || [macSize]byte(have) == [macSize]byte{} {
		return false
	}
	cookie := mac(c.secret[:], src)
	want := mac(cookie[:], msg[:len(msg)-macSize])
	return subtle.ConstantTimeCompare(want[:], have) == 1
}

// reply writes a cookie reply to a message from src with a valid mac1.
func (c *cookies) reply(now time.Time, out *[CookieReplySize]byte, l *Local, random io.Reader, msg, src []byte) error {
	if !c.good(now) {
		if _, err := io.ReadFull(random, c.secret[:]); err != nil {
			return fmt.Errorf("draw a secret for cookies: %w", err)
		}
		c.made = now
	}
	*out = [CookieReplySize]byte{TypeCookieReply}
	copy(out[4:8], msg[atSender:])
	nonce := out[8 : 8+nonceSize]
	if _, err := io.ReadFull(random, nonce); err != nil {
		return fmt.Errorf("draw a nonce for a cookie reply: %w", err)
	}
	cookie := mac(c.secret[:], src)
	mac1, _ := macs(msg)
	x, err := chacha20poly1305.NewX(l.cookie[:])
	if err != nil {
		return fmt.Errorf("seal a cookie: %w", err)
	}
	x.Seal(out[:8+nonceSize], nonce, cookie[:], mac1)
	return nil
}

// Jar holds the cookie that a peer gave us. The zero Jar is empty.
type Jar struct {
	cookie [macSize]byte
	got    time.Time
	mac1   [macSize]byte // of the last message, to which a cookie reply must be bound
	signed bool
}

// Sign writes both MACs into a message to the holder of r; mac2 only if there is a cookie.
func (j *Jar) Sign(now time.Time, r *Remote, msg []byte) {
	mac1, mac2 := macs(msg)
	j.mac1 = mac(r.mac1[:], msg[:len(msg)-2*macSize])
	j.signed = true
	copy(mac1, j.mac1[:])
	clear(mac2)
	if !j.got.IsZero() && now.Sub(j.got) < cookieTime {
		sum := mac(j.cookie[:], msg[:len(msg)-macSize])
		copy(mac2, sum[:])
	}
}

// Take reads a cookie reply to the last signed message.
func (j *Jar) Take(now time.Time, r *Remote, msg []byte) error {
	if len(msg) != CookieReplySize || binary.LittleEndian.Uint32(msg) != TypeCookieReply || !j.signed {
		return ErrInvalid
	}
	x, err := chacha20poly1305.NewX(r.cookie[:])
	if err != nil {
		return fmt.Errorf("open a cookie: %w", err)
	}
	cookie, err := x.Open(nil, msg[8:8+nonceSize], msg[8+nonceSize:], j.mac1[:])
	if err != nil {
		return ErrInvalid
	}
	j.cookie, j.got = [macSize]byte(cookie), now
	return nil
}
