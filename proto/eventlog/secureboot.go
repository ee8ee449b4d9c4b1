package eventlog

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf16"
)

// ErrSecureBoot means that a log does not prove secure boot to be on; errors that wrap it say why.
var ErrSecureBoot = errors.New("secure boot is not shown to be on")

// policyPCR is the PCR into which the firmware measures what may be started.
const policyPCR = 7

// globalVariable is the GUID of EFI_GLOBAL_VARIABLE, 8be4df61-93ca-11d2-aa0d-00e098032b8c, in its memory layout.
var globalVariable = [16]byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}

// Digests with a fixed meaning, whatever else the log claims about the event.
var (
	separators = map[[32]byte]bool{sha256.Sum256([]byte{0, 0, 0, 0}): true, sha256.Sum256([]byte{0xff, 0xff, 0xff, 0xff}): true}
	mishap     = sha256.Sum256([]byte{1, 0, 0, 0}) // a separator by which the firmware reports an error
	debugging  = sha256.Sum256([]byte("UEFI Debug Mode"))
)

// variable encodes a UEFI_VARIABLE_DATA structure.
func variable(name string, value []byte) []byte {
	text := utf16.Encode([]rune(name))
	b := append([]byte(nil), globalVariable[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(text)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	for _, u := range text {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return append(b, value...)
}

var (
	secureBootOn  = sha256.Sum256(variable("SecureBoot", []byte{1}))
	secureBootOff = sha256.Sum256(variable("SecureBoot", []byte{0}))
	// secureBootAbsent is what firmware without that variable measures.
	secureBootAbsent = sha256.Sum256(variable("SecureBoot", nil))
)

// SecureBoot returns nil if the log proves that the firmware verified what it started, and otherwise an error that says why not.
// The log must have been replayed to PCR 7.
//
// An attacker who controls the operating system can extend PCR 7 with anything, and can lie about everything in the log but the
// digests. So only events before the separator count, which marks the end of what the firmware does on its own; and no event
// before the SecureBoot variable may be able to hide the real one: the data of all of them must be known.
func (l *Log) SecureBoot() error {
	on := false
	for i := range l.Events {
		e := &l.Events[i]
		if e.PCR != policyPCR || e.Type == noAction {
			continue
		}
		switch {
		case separators[e.Digest]:
			if !on {
				return fmt.Errorf("%w: the firmware did not measure the variable SecureBoot", ErrSecureBoot)
			}
			return nil
		case e.Digest == mishap:
			return fmt.Errorf("%w: the firmware says that it failed to measure", ErrSecureBoot)
		case e.Digest == debugging:
			return fmt.Errorf("%w: the firmware was started in its debug mode", ErrSecureBoot)
		case e.Digest == secureBootOff, e.Digest == secureBootAbsent:
			return fmt.Errorf("%w: it is off", ErrSecureBoot)
		case e.Digest == secureBootOn:
			on = true
		case !on && !e.verified():
			return fmt.Errorf("%w: an event before the variable SecureBoot has no data, or others than were measured", ErrSecureBoot)
		}
	}
	return fmt.Errorf("%w: nothing separates the firmware's events from what came later", ErrSecureBoot)
}
