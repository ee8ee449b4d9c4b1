// Package wire is the only mapping between the vocabulary (package proto) and its encoding (proto/redoubt/v1), and the
// home of everything about the control stream that both of its ends must agree on.
//
//	GET /v1/control HTTP/1.1, Upgrade: redoubt/1        inside TLS 1.3
//	101 Switching Protocols, then in both directions:
//
//	+--------------------+---------------------------+
//	| length, 4 bytes BE | Up or Down, protobuf      |   ReadFrame, AppendFrame; DecodeUp, DecodeDown
//	+--------------------+---------------------------+
//
//	Netmap ──FromNetmap──► parts ──────────► NetmapAssembler ──► Netmap, valid
//	Delta  ──FromDelta───► parts ──────────► DeltaAssembler  ──► Delta, to be applied
//	Netmap ──EncodeNetmapFile──► the agent's disk ──DecodeNetmapFile──► Netmap, valid
//
// A part is at most 512 KiB. A set whose members do not fit into one goes on, under the same name, at the start of the
// next one. What is read is bounded before memory is spent on it, and validated before anyone sees it. In netmaps and
// deltas a field that this program does not know is an error, since it may restrict something; elsewhere it is skipped.
package wire
