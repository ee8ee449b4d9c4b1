package wire

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// fileMagic begins a netmap file and identifies its layout: magic, SHA-256 of what follows, parts as frames.
const fileMagic = "redoubt netmap 1\n"

// maxFile limits the size of a netmap file in bytes.
const maxFile = len(fileMagic) + sha256.Size + MaxAssembled

// The reasons why a netmap file is unusable; the next netmap from the coordinator replaces it.
var (
	ErrFileVersion = errors.New("netmap file: written by another version of the program")
	ErrFileDamaged = errors.New("netmap file: damaged")
)

// EncodeNetmapFile encodes a valid netmap as the agent stores it on disk.
func EncodeNetmapFile(nm *proto.Netmap) ([]byte, error) {
	if err := nm.Validate(); err != nil {
		return nil, fmt.Errorf("netmap file: %w", err)
	}
	start := len(fileMagic) + sha256.Size
	b := append([]byte(fileMagic), make([]byte, sha256.Size)...)
	for _, p := range FromNetmap(nm) {
		var err error
		if b, err = AppendFrame(b, p); err != nil {
			return nil, fmt.Errorf("netmap file: %w", err)
		}
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("netmap file: %d bytes, at most %d", len(b), maxFile)
	}
	sum := sha256.Sum256(b[start:])
	copy(b[len(fileMagic):], sum[:])
	return b, nil
}

// DecodeNetmapFile decodes and validates the output of EncodeNetmapFile.
func DecodeNetmapFile(b []byte) (*proto.Netmap, error) {
	if !bytes.HasPrefix(b, []byte(fileMagic)) {
		if bytes.HasPrefix(b, []byte(fileMagic[:len(fileMagic)-2])) {
			return nil, ErrFileVersion
		}
		return nil, fmt.Errorf("%w: not one", ErrFileDamaged)
	}
	b = b[len(fileMagic):]
	if len(b) < sha256.Size || len(b) > maxFile {
		return nil, fmt.Errorf("%w: %d bytes", ErrFileDamaged, len(b))
	}
	sum := sha256.Sum256(b[sha256.Size:])
	if !bytes.Equal(sum[:], b[:sha256.Size]) {
		return nil, fmt.Errorf("%w: the checksum does not fit", ErrFileDamaged)
	}
	return decodeParts(bytes.NewReader(b[sha256.Size:]))
}

func decodeParts(r *bytes.Reader) (*proto.Netmap, error) {
	var a NetmapAssembler
	for {
		frame, err := ReadFrame(r, nil, MaxFrame)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("%w: %w", ErrFileDamaged, err)
		}
		var p redoubtv1.NetmapPart
		if err := pb.Unmarshal(frame, &p); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFileDamaged, err)
		}
		done, nm, err := a.Add(&p)
		switch {
		case err != nil:
			return nil, fmt.Errorf("netmap file: %w", err)
		case done && r.Len() > 0:
			return nil, fmt.Errorf("%w: %d bytes too many", ErrFileDamaged, r.Len())
		case done:
			return nm, nil
		}
	}
}
