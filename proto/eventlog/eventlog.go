package eventlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// MaxSize is the maximum size of a log read from a machine, in bytes.
const MaxSize = 4 << 20

// The errors of this package; what is returned wraps one of them.
var (
	ErrMalformed = errors.New("not a log of measured boot")
	ErrSHA1      = errors.New("the log has no SHA-256 digests")
	ErrReplay    = errors.New("the log does not lead to the PCRs that were quoted")
	ErrTooLarge  = errors.New("the log is too large")
)

// noAction is the type of events that were not extended into a PCR.
const noAction = 3

const (
	algSHA1   = 0x0004
	algSHA256 = 0x000b
)

// Event is one entry of a log.
type Event struct {
	PCR    uint32
	Type   uint32
	Digest [32]byte // from the SHA-256 bank
	Data   []byte
}

// verified reports whether the data are what was measured.
func (e *Event) verified() bool { return sha256.Sum256(e.Data) == e.Digest }

// Log is a parsed log. Its events share memory with the bytes it was parsed from.
type Log struct {
	Events []Event
}

const specID = "Spec ID Event03\x00"

// Parse parses a complete log.
func Parse(b []byte) (*Log, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(b), MaxSize)
	}
	r := reader{b: b}
	r.take(8)
	r.take(20)
	header := r.take(int(r.u32()))
	if r.failed {
		return nil, fmt.Errorf("%w: its first event is cut short", ErrMalformed)
	}
	sizes, err := algorithms(header)
	if err != nil {
		return nil, err
	}
	var l Log
	for len(r.b) > 0 {
		e, err := r.event(sizes)
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", len(l.Events)+1, err)
		}
		l.Events = append(l.Events, e)
	}
	return &l, nil
}

// algorithms parses the header event: the algorithms of the digests that events may have, and their sizes.
func algorithms(header []byte) (map[uint16]int, error) {
	if !bytes.HasPrefix(header, []byte(specID)) {
		return nil, fmt.Errorf("%w: it is of the form for TPM 1.2", ErrSHA1)
	}
	r := reader{b: header[len(specID):]}
	r.take(8)
	n := r.u32()
	if n == 0 || n > 16 {
		return nil, fmt.Errorf("%w: %d digest algorithms", ErrMalformed, n)
	}
	sizes := make(map[uint16]int, n)
	for range n {
		alg, size := r.u16(), int(r.u16())
		if _, twice := sizes[alg]; twice || size == 0 || size > 64 || alg == algSHA256 && size != sha256.Size {
			return nil, fmt.Errorf("%w: algorithm %#x with %d bytes", ErrMalformed, alg, size)
		}
		sizes[alg] = size
	}
	if r.failed {
		return nil, fmt.Errorf("%w: its header is cut short", ErrMalformed)
	}
	if sizes[algSHA256] == 0 {
		return nil, ErrSHA1
	}
	return sizes, nil
}

// reader reads values from the front of b. Once a value is missing, it has failed for good and returns zeros.
type reader struct {
	b      []byte
	failed bool
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.b, r.failed = nil, true
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) event(sizes map[uint16]int) (Event, error) {
	e := Event{PCR: r.u32(), Type: r.u32()}
	n := r.u32()
	if r.failed || n > uint32(len(sizes)) {
		return e, fmt.Errorf("%w: %d digests, or cut short", ErrMalformed, n)
	}
	found := false
	for range n {
		alg := r.u16()
		size, known := sizes[alg]
		if !known {
			return e, fmt.Errorf("%w: a digest of algorithm %#x, which the header does not name", ErrMalformed, alg)
		}
		digest := r.take(size)
		if alg == algSHA256 && !r.failed {
			if found {
				return e, fmt.Errorf("%w: two SHA-256 digests", ErrMalformed)
			}
			found, e.Digest = true, [32]byte(digest)
		}
	}
	e.Data = r.take(int(r.u32()))
	if r.failed || !found {
		return e, fmt.Errorf("%w: cut short, or without a SHA-256 digest", ErrMalformed)
	}
	return e, nil
}

// Append appends a log with only the SHA-256 digests to b.
func Append(b []byte, events []Event) []byte {
	header := []byte(specID)
	header = binary.LittleEndian.AppendUint32(header, 0) // platform class: client
	header = append(header, 0, 2, 0, 2)                  // version 2.0, 64 bit
	header = binary.LittleEndian.AppendUint32(header, 1) // one algorithm
	header = binary.LittleEndian.AppendUint16(header, algSHA256)
	header = binary.LittleEndian.AppendUint16(header, sha256.Size)
	header = append(header, 0) // no vendor information
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, noAction)
	b = append(b, make([]byte, 20)...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(header)))
	b = append(b, header...)
	for i := range events {
		e := &events[i]
		b = binary.LittleEndian.AppendUint32(b, e.PCR)
		b = binary.LittleEndian.AppendUint32(b, e.Type)
		b = binary.LittleEndian.AppendUint32(b, 1)
		b = binary.LittleEndian.AppendUint16(b, algSHA256)
		b = append(b, e.Digest[:]...)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Data)))
		b = append(b, e.Data...)
	}
	return b
}

// caps are the limits on event data that Trim tries in turn. Longer data are dropped, which does not affect replay.
var caps = []int{MaxSize, 4 << 10, 1 << 10, 256, 64}

// Trim encodes the events of some PCRs in at most size bytes; it drops data, longest first, as far as necessary.
func (l *Log) Trim(pcrs []uint32, size int) ([]byte, error) {
	var of []Event
	for _, e := range l.Events {
		if slices.Contains(pcrs, e.PCR) {
			of = append(of, e)
		}
	}
	for _, most := range caps {
		for i := range of {
			if len(of[i].Data) > most {
				of[i].Data = nil
			}
		}
		if out := Append(nil, of); len(out) <= size {
			return out, nil
		}
	}
	return nil, fmt.Errorf("%w: its %d events do not fit %d bytes", ErrTooLarge, len(of), size)
}

// startup begins the data of the event that states from which locality the TPM was started.
const startup = "StartupLocality\x00"

// Replay returns an error unless the log replays to this value of a PCR.
func (l *Log) Replay(pcr uint32, value [32]byte) error {
	var now [32]byte
	extended := false
	for i := range l.Events {
		e := &l.Events[i]
		if e.PCR != pcr {
			continue
		}
		if e.Type == noAction {
			locality, ok := bytes.CutPrefix(e.Data, []byte(startup))
			if ok && pcr == 0 && !extended && len(locality) == 1 {
				now[31] = locality[0]
			}
			continue
		}
		extended = true
		now = sha256.Sum256(append(now[:], e.Digest[:]...))
	}
	if now != value {
		return fmt.Errorf("PCR %d: %w", pcr, ErrReplay)
	}
	return nil
}
