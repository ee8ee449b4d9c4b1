// Package key has one opaque type for every kind of key that a mesh uses.
//
//	                 private          public
//	node key         NodePrivate      NodePublic     X25519: the WireGuard static key
//	device key       DevicePrivate    DevicePublic   ECDSA P-256: signs, is the subject of the node certificate
//	path key         PathPrivate      PathPublic     X25519: messages about paths are sealed for it
//	join token       TokenSecret      TokenPublic    Ed25519: the secret of a join code and what the coordinator keeps of it
//
// Public types are plain values: they compare with ==, serve as map keys, and can only be made by parsing, which refuses
// anything that is not such a key. Private types do not reveal their content by accident: formatted in any way, logged, or
// nested in something that is, they read "[secret]", and marshalling them is an error. The content is behind a func value,
// which reflection cannot look into; the few callers that need the bytes use Expose or MarshalPEM.
package key
