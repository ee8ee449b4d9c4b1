// Package eventlog reads the measured-boot log: what the firmware extended into the PCRs of a TPM, event by event (TCG PC Client
// Platform Firmware Profile, "crypto agile" form).
//
//	event 0   PCR u32 | type u32 | SHA-1 [20] | size u32 | "Spec ID Event03" ... algorithms and their sizes
//	event n   PCR u32 | type u32 | count u32 | count x (algorithm u16 | digest) | size u32 | data      all little endian
//
// Only the PCRs that a log replays to vouch for it, and they vouch only for the order and the digests of the events. Types are
// not measured, and data only if they hash to the digest. So this package relies on digests alone: an event whose data do not
// hash to its digest proves nothing.
//
// The log comes from a machine that may lie. Parse and everything that processes its result accept any input.
package eventlog
