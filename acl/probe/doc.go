// Package probe reads the questions of `policy eval` and writes its answers, one JSON object a line:
//
//	{"at":"n2","src_ip":"100.64.0.1","dst_ip":"100.64.0.2","proto":"tcp","port":22}
//	{"allowed":true,"rule":"grants[0]","mode":"enforce"}
//
// The rule is the one that allows or denies, and empty where none is about the connection. Keys of a probe that are not
// known are passed over, so that a file may carry notes of its own. There are millions of them, so flat objects without
// escapes are read by hand, and encoding/json reads the rest.
package probe
