// Package wire is the only mapping between the vocabulary (package proto) and its encoding (proto/redoubt/v1), and defines
// everything about the control stream that both ends must agree on.
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
// A part is at most 512 KiB. A set whose members do not fit into one part continues, under the same name, at the start of the
// next. Input is bounded before memory is allocated for it, and validated before it is used. In netmaps and deltas, an unknown
// field is an error, since it may restrict something; elsewhere it is ignored.
package wire
