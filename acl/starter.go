package acl

import _ "embed" // the starter policy

// Starter is the policy that is written beside a new mesh's data, for people to edit. It is not applied automatically.
//
//go:embed starter.hujson
var Starter []byte
