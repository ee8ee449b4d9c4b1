// Package refusal is how the coordinator refuses something to a node: a code for the program at the other end, and a text for
// the person in front of it that says what was refused and what to do next. A Refusal ends the stream.
package refusal

import (
	"errors"
	"fmt"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/ipam"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// Refusal is a refusal. It is an error, so that it can be returned as one.
type Refusal struct {
	Code       redoubtv1.Refusal_Code
	Message    string
	RetryAfter time.Duration // 0: the program must not retry by itself
}

// Held returns the wire form for a stream that stays open while the refusal stands, with a keepalive every so many seconds; 0
// ends the stream.
func (r *Refusal) Held(seconds uint32) *redoubtv1.Down {
	down := r.Down()
	down.GetRefusal().HoldSeconds = seconds
	return down
}

func (r *Refusal) Error() string { return r.Message }

// Down returns the wire form of the refusal.
func (r *Refusal) Down() *redoubtv1.Down {
	return &redoubtv1.Down{Message: &redoubtv1.Down_Refusal{Refusal: &redoubtv1.Refusal{
		Code: r.Code, Message: r.Message, RetryAfterSeconds: uint32((r.RetryAfter + time.Second - 1) / time.Second),
	}}}
}

// Malformed refuses a message that makes no sense.
func Malformed(why string) *Refusal {
	return &Refusal{Code: redoubtv1.Refusal_CODE_MALFORMED, Message: "the coordinator does not understand this: " + why +
		"; are both programs of the same version?"}
}

// Proof refuses an invalid proof.
func Proof(what string) *Refusal {
	return &Refusal{Code: redoubtv1.Refusal_CODE_PROOF, Message: "the proof of " + what + " does not hold, so nothing was changed; " +
		"try again and, if that is no help, remove the agent's state and enrol with a new join code"}
}

// Token refuses a join token. It says the same whatever is wrong, because the reader has not proved to hold the token.
func Token() *Refusal {
	return &Refusal{Code: redoubtv1.Refusal_CODE_TOKEN, Message: "the join code is not valid: it may be mistyped, used, expired or revoked; " +
		"ask for a new one (redoubt-coordinator token create)"}
}

// Late refuses an answer that took too long.
func Late() *Refusal {
	return &Refusal{Code: redoubtv1.Refusal_CODE_EXPIRED, Message: "the answer took too long; try again", RetryAfter: time.Second}
}

// Revoked tells a node that it is no longer trusted.
func Revoked() *Refusal {
	return &Refusal{Code: redoubtv1.Refusal_CODE_REVOKED, Message: "this node was revoked; to use the machine again, join with a new code " +
		"(redoubt-coordinator token create)"}
}

// lockedPause is how soon a locked node retries: the lock may be short.
const lockedPause = 15 * time.Second

// Locked tells a node that it is not trusted at the moment.
func Locked(l *directory.Lock) *Refusal {
	why := ""
	if l.Reason != "" {
		why = " (" + l.Reason + ")"
	}
	return &Refusal{Code: redoubtv1.Refusal_CODE_LOCKED, Message: fmt.Sprintf("locked%s: nothing passes until an administrator deletes the lock "+
		"(redoubt-coordinator lock delete %s)", why, l.ID), RetryAfter: lockedPause}
}

// Of returns why a node is not trusted; nil stands for an unknown node.
func Of(n *directory.Node) *Refusal {
	switch {
	case n == nil:
		return Deleted()
	case n.Revoked != nil:
		return Revoked()
	case n.Lock != nil:
		return Locked(n.Lock)
	}
	return Internal()
}

// Quarantined tells a node that it is in quarantine.
func Quarantined(why string) *Refusal {
	return &Refusal{
		Code: redoubtv1.Refusal_CODE_QUARANTINED, RetryAfter: time.Minute,
		Message: "this node is in quarantine, because two machines use its identity (" + why + "): find and remove the copy of its state directory, " +
			"then release the rightful machine with `redoubt-coordinator node release NODE`",
	}
}

// Released tells a node that its quarantine is over.
func Released() *Refusal {
	return &Refusal{Code: redoubtv1.Refusal_CODE_BUSY, Message: "the quarantine is over; connect again", RetryAfter: time.Second}
}

// Deleted tells a node that the coordinator does not know it.
func Deleted() *Refusal {
	return &Refusal{Code: redoubtv1.Refusal_CODE_DELETED, Message: "the coordinator no longer knows this node; enrol again with a new join code " +
		"(redoubt-coordinator token create)"}
}

// Replaced tells a stream that the node has opened another one.
func Replaced() *Refusal {
	return &Refusal{Code: redoubtv1.Refusal_CODE_REPLACED, Message: "the same node connected again from elsewhere; if that was not this machine, " +
		"its identity was copied: revoke the node", RetryAfter: 30 * time.Second}
}

// OtherMachine tells a node that another machine has taken its place.
func OtherMachine() *Refusal {
	return &Refusal{Code: redoubtv1.Refusal_CODE_DELETED, Message: "another machine has taken this node's place " +
		"(redoubt-coordinator token create --replace); enrol this one with a new join code"}
}

// Internal reports a failure of the coordinator itself; its log says more.
func Internal() *Refusal {
	return &Refusal{Code: redoubtv1.Refusal_CODE_INTERNAL, Message: "the coordinator failed to do this; see its log", RetryAfter: 10 * time.Second}
}

// From translates an error of the directory. The text about a token's state goes only to those who proved to hold the token.
// ok is false for a failure of the coordinator, which should be logged.
func From(err error) (r *Refusal, ok bool) {
	var quarantined *directory.QuarantineError
	const again = "; ask for a new one (redoubt-coordinator token create)"
	code := func(c redoubtv1.Refusal_Code, text string) (*Refusal, bool) {
		return &Refusal{Code: c, Message: text}, true
	}
	var locked *directory.LockedError
	if r := admission(err); r != nil {
		return r, true
	}
	switch {
	case errors.As(err, &r):
		return r, true
	case errors.Is(err, directory.ErrTokenUnknown):
		return Token(), true
	case errors.Is(err, directory.ErrTokenSpent):
		return code(redoubtv1.Refusal_CODE_TOKEN, "the join code was used by another machine"+again)
	case errors.Is(err, directory.ErrTokenExpired):
		return code(redoubtv1.Refusal_CODE_TOKEN, "the join code has expired"+again)
	case errors.Is(err, directory.ErrTokenRevoked):
		return code(redoubtv1.Refusal_CODE_TOKEN, "the join code was revoked"+again)
	case errors.Is(err, directory.ErrKeyUsed):
		return code(redoubtv1.Refusal_CODE_KEY_USED, "a key of this machine is known from another node: was its disk or its state directory copied? "+
			"Remove the agent's state directory and enrol again")
	case errors.Is(err, directory.ErrMachineKnown):
		return code(redoubtv1.Refusal_CODE_MACHINE_KNOWN, err.Error())
	case errors.Is(err, directory.ErrDowngrade):
		return code(redoubtv1.Refusal_CODE_DOWNGRADE, err.Error())
	case errors.Is(err, directory.ErrTicket):
		return &Refusal{
			Code: redoubtv1.Refusal_CODE_PROOF, RetryAfter: 5 * time.Minute,
			Message: "the renewal's ticket was not issued to this node, so its state directory is incomplete: restore a good copy, or " +
				"remove it and enrol with a new join code (redoubt-coordinator token create)",
		}, true
	case errors.As(err, &quarantined):
		return Quarantined(quarantined.Why), true
	case errors.Is(err, directory.ErrRevoked):
		return Revoked(), true
	case errors.As(err, &locked):
		return Locked(locked.Lock), true
	case errors.Is(err, directory.ErrUnknown):
		return Deleted(), true
	case errors.Is(err, ipam.ErrExhausted):
		return code(redoubtv1.Refusal_CODE_EXHAUSTED, "the mesh has no free address left; an administrator can delete unused nodes "+
			"(redoubt-coordinator node list, node delete)")
	case errors.Is(err, directory.ErrInvalid):
		return code(redoubtv1.Refusal_CODE_MALFORMED, err.Error())
	}
	return Internal(), false
}
