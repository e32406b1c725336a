package swarmstore

import (
	"bytes"
	"errors"
	"strconv"

	"github.com/redis/go-redis/v9"
)

var errReply = errors.New("a reply of Redis makes no sense")

// replyError is the error that a raw reply holds, or nil. Raw replies spare a
// string for each peer; go-redis does not look into them.
func replyError(raw []byte) error {
	if len(raw) == 0 || raw[0] != '-' {
		return nil
	}
	return rawError(bytes.TrimRight(raw[1:], "\r\n"))
}

// rawError is an error reply in go-redis's terms.
type rawError string

func (e rawError) Error() string { return string(e) }
func (rawError) RedisError()     {}

var _ redis.Error = rawError("")

// parsePeers reads a RESP2 reply of members and scores in turn, as ZRANGE and
// ZRANDMEMBER give them, and calls yield for each pair. The member is valid during
// the call.
func parsePeers(raw []byte, yield func(member []byte, score int64)) error {
	n, raw, ok := header(raw, '*')
	if !ok || n%2 != 0 {
		return errReply
	}
	for range n / 2 {
		var member, score []byte
		if member, raw, ok = bulk(raw); !ok {
			return errReply
		}
		if score, raw, ok = bulk(raw); !ok {
			return errReply
		}
		s, err := strconv.ParseInt(string(score), 10, 64)
		if err != nil {
			return errReply
		}
		yield(member, s)
	}
	if len(raw) != 0 {
		return errReply
	}
	return nil
}

// parseMembers reads a RESP2 reply of members alone, likewise.
func parseMembers(raw []byte, yield func(member []byte)) error {
	n, raw, ok := header(raw, '*')
	if !ok {
		return errReply
	}
	for range n {
		var member []byte
		if member, raw, ok = bulk(raw); !ok {
			return errReply
		}
		yield(member)
	}
	if len(raw) != 0 {
		return errReply
	}
	return nil
}

// parseScan reads the RESP2 reply to SCAN, and calls yield for each key, which is valid during the call.
func parseScan(raw []byte, yield func(key []byte)) (cursor string, err error) {
	n, raw, ok := header(raw, '*')
	if !ok || n != 2 {
		return "", errReply
	}
	next, raw, ok := bulk(raw)
	if !ok {
		return "", errReply
	}
	return string(next), parseMembers(raw, yield)
}

// header reads "<kind><n>\r\n".
func header(raw []byte, kind byte) (n int, rest []byte, ok bool) {
	end := bytes.IndexByte(raw, '\n')
	if end < 3 || raw[0] != kind || raw[end-1] != '\r' {
		return 0, nil, false
	}
	n, err := strconv.Atoi(string(raw[1 : end-1]))
	return n, raw[end+1:], err == nil && n >= 0
}

// bulk reads "$<n>\r\n<n bytes>\r\n".
func bulk(raw []byte) (value, rest []byte, ok bool) {
	n, raw, ok := header(raw, '$')
	if !ok || n > len(raw)-2 || raw[n] != '\r' || raw[n+1] != '\n' {
		return nil, nil, false
	}
	return raw[:n], raw[n+2:], true
}
