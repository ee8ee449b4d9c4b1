package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
)

// The log is a sequence of records:
//
//	length of the payload, 4 bytes | CRC-32C of these 4 bytes | CRC-32C of the payload | payload
//
// in big endian. Appending is one write and one sync. A crash can leave a tail that is short, or that holds zeros if the
// file system had already allocated space; only such a tail is taken for a record that was never acknowledged.
const recordHeader = 12

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errLog = errors.New("damaged in the middle")

func appendRecord(dst, payload []byte) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:start+4], castagnoli))
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(payload, castagnoli))
	return append(dst, payload...)
}

// records splits a log. good is the length of its complete records; what follows is a tail that a crash left.
func records(log []byte) (payloads [][]byte, good int, err error) {
	for good < len(log) {
		rest := log[good:]
		if len(rest) < recordHeader {
			return payloads, good, nil
		}
		if binary.BigEndian.Uint32(rest[4:]) != crc32.Checksum(rest[:4], castagnoli) {
			if zeros(rest[recordHeader:]) {
				return payloads, good, nil
			}
			return nil, 0, errLog
		}
		n := uint64(binary.BigEndian.Uint32(rest))
		body := rest[recordHeader:]
		if n > uint64(len(body)) {
			return payloads, good, nil
		}
		if binary.BigEndian.Uint32(rest[8:]) != crc32.Checksum(body[:n], castagnoli) {
			if zeros(body[n:]) {
				return payloads, good, nil
			}
			return nil, 0, errLog
		}
		payloads = append(payloads, body[:n])
		good += recordHeader + int(n)
	}
	return payloads, good, nil
}

func zeros(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// readLog returns the complete records of the log, and truncates the tail that a crash left.
func (d *Dir) readLog() ([][]byte, error) {
	log, err := d.fs.Read(fileLog, limitNetmap)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	payloads, good, err := records(log)
	if err != nil {
		return nil, d.corrupt(fileLog, err.Error())
	}
	if good < len(log) {
		if err := d.fs.Truncate(fileLog, int64(good)); err != nil {
			return nil, err
		}
	}
	d.logSize = int64(good)
	return payloads, nil
}

// appendLog appends a record and syncs it.
func (d *Dir) appendLog(payload []byte) error {
	if d.logBroken {
		return errors.New("an earlier write to it failed")
	}
	record := appendRecord(nil, payload)
	err := d.appendSynced(record)
	if err != nil {
		// The file may hold part of the record. Whatever is appended after that could not be read again.
		d.logBroken = true
		return err
	}
	d.logSize += int64(len(record))
	return nil
}

func (d *Dir) appendSynced(record []byte) error {
	f, err := d.fs.Append(fileLog)
	created := errors.Is(err, fs.ErrNotExist)
	if created {
		f, err = d.fs.Create(fileLog)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(record)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil && created {
		err = d.fs.SyncDir()
	}
	return err
}

// dropLog removes the log after a snapshot that includes everything in it. A crash before that leaves records that lead up
// to the snapshot's version at most; loading skips them.
func (d *Dir) dropLog() error {
	err := d.fs.Remove(fileLog)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	d.logSize, d.logBroken = 0, false
	return nil
}
