package noise

import (
	"crypto/ecdh"
	"encoding/binary"
	"time"

	"golang.zx2c4.com/wireguard/tai64n"
)

// Message types.
const (
	TypeInitiation  = 1
	TypeResponse    = 2
	TypeCookieReply = 3
	TypeTransport   = 4
)

// Message sizes.
const (
	InitiationSize  = 148
	ResponseSize    = 92
	CookieReplySize = 64
	HeaderSize      = 16                   // of a transport message, before the content
	Overhead        = HeaderSize + tagSize // of a transport message, in addition to its content
)

const macSize = 16

// Offsets in the messages. All end with both MACs.
const (
	atSender    = 4
	atReceiver  = 8 // in responses
	atEphemeral = 8 // in initiations
	atStatic    = atEphemeral + keySize
	atStamp     = atStatic + keySize + tagSize
	atReply     = 12 // ephemeral key in responses
)

// Stamp returns t as carried in initiations. It is coarsened to 17 ms, so that it does not reveal how fast this host is.
func Stamp(t time.Time) (s tai64n.Timestamp) {
	const (
		epoch = 0x400000000000000a
		fine  = 1<<24 - 1
	)
	binary.BigEndian.PutUint64(s[:], epoch+uint64(t.Unix()))
	binary.BigEndian.PutUint32(s[8:], uint32(t.Nanosecond())&^fine)
	return s
}

// Initiator is a handshake that waits for its response.
type Initiator struct {
	Pair  *Pair
	Index uint32

	state     symmetric
	ephemeral *ecdh.PrivateKey
}

// Initiate writes an initiation, without its MACs. The peer will name this handshake by index.
func (p *Pair) Initiate(msg *[InitiationSize]byte, ephemeral [keySize]byte, index uint32, stamp tai64n.Timestamp) (*Initiator, error) {
	e, err := ecdh.X25519().NewPrivateKey(ephemeral[:])
	if err != nil {
		return nil, err
	}
	i := &Initiator{Pair: p, Index: index, ephemeral: e, state: begin([]byte(identifier), &p.Remote.public)}
	*msg = [InitiationSize]byte{TypeInitiation}
	binary.LittleEndian.PutUint32(msg[atSender:], index)
	if _, err := p.writeFirst(&i.state, msg[:atEphemeral], e, stamp[:]); err != nil {
		return nil, err
	}
	return i, nil
}

// writeFirst appends e, es, s, ss and the payload to dst.
func (p *Pair) writeFirst(s *symmetric, dst []byte, e *ecdh.PrivateKey, payload []byte) ([]byte, error) {
	public := e.PublicKey().Bytes()
	dst = append(dst, public...)
	s.mixHash(public)
	s.mixKey(public)
	var shared [keySize]byte
	defer clear(shared[:])
	if err := agree(&shared, e, p.Remote.key); err != nil {
		return nil, err
	}
	dst = s.seal(dst, s.mixCipher(shared[:]), p.Local.public[:])
	return s.seal(dst, s.mixCipher(p.shared[:]), payload), nil
}

// Initiation is an initiation whose sender has been read but not proven yet.
type Initiation struct {
	Sender uint32
	Remote [keySize]byte // the sender's static key, as claimed

	state     symmetric
	ephemeral *ecdh.PublicKey
	stamp     [tai64n.TimestampSize + tagSize]byte
}

// Open reads which key an initiation claims to come from.
func (l *Local) Open(msg []byte) (*Initiation, error) {
	if len(msg) != InitiationSize || binary.LittleEndian.Uint32(msg) != TypeInitiation {
		return nil, ErrInvalid
	}
	in := &Initiation{
		Sender: binary.LittleEndian.Uint32(msg[atSender:]),
		state:  begin([]byte(identifier), &l.public),
		stamp:  [tai64n.TimestampSize + tagSize]byte(msg[atStamp:]),
	}
	if err := l.readFirst(in, msg[atEphemeral:atStatic], msg[atStatic:atStamp]); err != nil {
		return nil, err
	}
	return in, nil
}

// readFirst reads e, es and s.
func (l *Local) readFirst(in *Initiation, ephemeral, static []byte) (err error) {
	if in.ephemeral, err = ecdh.X25519().NewPublicKey(ephemeral); err != nil {
		return ErrInvalid
	}
	s := &in.state
	s.mixHash(ephemeral)
	s.mixKey(ephemeral)
	var shared [keySize]byte
	defer clear(shared[:])
	if err := agree(&shared, l.private, in.ephemeral); err != nil {
		return err
	}
	_, err = s.open(in.Remote[:0], s.mixCipher(shared[:]), static)
	return err
}

// Verify checks that an initiation is its sender's, and returns its timestamp.
func (p *Pair) Verify(in *Initiation) (stamp tai64n.Timestamp, err error) {
	_, err = in.state.open(stamp[:0], in.state.mixCipher(p.shared[:]), in.stamp[:])
	return stamp, err
}

// Respond writes the response to an initiation that Verify accepted, without its MACs, and returns the session's keys.
func (p *Pair) Respond(msg *[ResponseSize]byte, in *Initiation, ephemeral [keySize]byte, index uint32, psk *[keySize]byte) (k Keys, err error) {
	e, err := ecdh.X25519().NewPrivateKey(ephemeral[:])
	if err != nil {
		return Keys{}, err
	}
	*msg = [ResponseSize]byte{TypeResponse}
	binary.LittleEndian.PutUint32(msg[atSender:], index)
	binary.LittleEndian.PutUint32(msg[atReceiver:], in.Sender)
	if _, err := writeSecond(&in.state, msg[:atReply], e, in.ephemeral, p.Remote.key, psk, nil); err != nil {
		return Keys{}, err
	}
	k.Receive, k.Send = in.state.split()
	return k, nil
}

// writeSecond appends e, ee, se, psk and the payload to dst. Re and rs are the initiator's keys.
func writeSecond(s *symmetric, dst []byte, e *ecdh.PrivateKey, re, rs *ecdh.PublicKey, psk *[keySize]byte, payload []byte) ([]byte, error) {
	public := e.PublicKey().Bytes()
	dst = append(dst, public...)
	s.mixHash(public)
	s.mixKey(public)
	if err := mixDH(s, e, re); err != nil {
		return nil, err
	}
	if err := mixDH(s, e, rs); err != nil {
		return nil, err
	}
	return s.seal(dst, s.mixPSK(psk), payload), nil
}

// Consume reads the response to this initiation, and returns the session's keys and the peer's index for it. A message that is
// not the response leaves the initiator unchanged.
func (i *Initiator) Consume(msg []byte, psk *[keySize]byte) (k Keys, sender uint32, err error) {
	if len(msg) != ResponseSize || binary.LittleEndian.Uint32(msg) != TypeResponse ||
		binary.LittleEndian.Uint32(msg[atReceiver:]) != i.Index || i.ephemeral == nil {
		return Keys{}, 0, ErrInvalid
	}
	s := i.state
	defer func() { s = symmetric{} }()
	body := msg[atReply : ResponseSize-2*macSize]
	if _, err := readSecond(&s, nil, body, i.ephemeral, i.Pair.Local.private, psk); err != nil {
		return Keys{}, 0, err
	}
	k.Send, k.Receive = s.split()
	i.Clear()
	return k, binary.LittleEndian.Uint32(msg[atSender:]), nil
}

// readSecond reads e, ee, se, psk and the payload, which it appends to dst.
func readSecond(s *symmetric, dst, msg []byte, e, static *ecdh.PrivateKey, psk *[keySize]byte) ([]byte, error) {
	re, err := ecdh.X25519().NewPublicKey(msg[:keySize])
	if err != nil {
		return nil, ErrInvalid
	}
	s.mixHash(msg[:keySize])
	s.mixKey(msg[:keySize])
	if err := mixDH(s, e, re); err != nil {
		return nil, err
	}
	if err := mixDH(s, static, re); err != nil {
		return nil, err
	}
	return s.open(dst, s.mixPSK(psk), msg[keySize:])
}

// Clear erases the secrets of the handshake. Copies made by crypto/ecdh are left to the garbage collector.
func (i *Initiator) Clear() { i.state, i.ephemeral = symmetric{}, nil }
