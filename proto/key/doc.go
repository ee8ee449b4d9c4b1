// Package key has one opaque type for every kind of key that a mesh uses.
//
//	                 private          public
//	node key         NodePrivate      NodePublic     X25519: the WireGuard static key
//	device key       DevicePrivate    DevicePublic   ECDSA P-256: signs, is the subject of the node certificate
//	join token       TokenSecret      TokenPublic    Ed25519: the secret of a join code and what the coordinator keeps of it
//
// Public types are plain values: they compare with ==, serve as map keys, and can only be made by parsing, which refuses
// what is no such key. Private types give their content to nobody by accident: formatted in any way, logged, or nested in
// something that is, they read "[secret]", and marshalling them is an error. The content is behind a func value, which no
// reflection looks into; the few who need the bytes say Expose or MarshalPEM.
package key
