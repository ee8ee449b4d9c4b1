// Package eventlog reads the log of measured boot: what the firmware extended into the PCRs of a TPM, event by event (TCG PC
// Client Platform Firmware Profile, "crypto agile" form).
//
//	event 0   PCR u32 | type u32 | SHA-1 [20] | size u32 | "Spec ID Event03" ... algorithms and their sizes
//	event n   PCR u32 | type u32 | count u32 | count x (algorithm u16 | digest) | size u32 | data      all little endian
//
// Nothing vouches for a log but the PCRs that it replays to, and what PCRs vouch for is the order and the digests of the
// events. The types are not measured, and data are measured only where their hash is the digest. So this package goes by
// digests alone: an event whose data do not hash to its digest has said nothing.
//
// The log comes from a machine that may lie. Parse and all that follows it take any bytes.
package eventlog
