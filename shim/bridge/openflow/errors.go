package openflow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Error is an error message of the switch. Two are equal (errors.Is) when type
// and code are.
type Error struct {
	Type, Code uint16
	// Message is the beginning of the message that was refused, at least its
	// header where there is one.
	Message []byte
}

// Errors that callers tell apart, for errors.Is.
var (
	ErrBadPrereq    = &Error{Type: 4, Code: 9}
	ErrBadOutGroup  = &Error{Type: 2, Code: 9}
	ErrOverlap      = &Error{Type: 5, Code: 3}
	ErrTableFull    = &Error{Type: 5, Code: 1}
	ErrUnknownMeter = &Error{Type: 12, Code: 3}
	ErrInvalidMeter = &Error{Type: 12, Code: 2}
	ErrMeterExists  = &Error{Type: 12, Code: 1}
	ErrBundleFailed = &Error{Type: 17, Code: 13}
)

// Is compares type and code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Type == e.Type && t.Code == e.Code
}

// Error names the error as the specification does.
func (e *Error) Error() string {
	kind, ok := errorKinds[e.Type]
	if !ok {
		return fmt.Sprintf("openflow: error type %d code %d", e.Type, e.Code)
	}
	if e.Type == typeExperimenter {
		return fmt.Sprintf("openflow: %s: code %d", kind, e.Code)
	}
	name, ok := errorNames[[2]uint16{e.Type, e.Code}]
	if !ok {
		name = fmt.Sprintf("code %d", e.Code)
	}
	return "openflow: " + kind + ": " + strings.ToLower(strings.ReplaceAll(name, "_", " "))
}

// DecodeError reads the body of an error message.
func DecodeError(body []byte) (*Error, error) {
	if len(body) < 4 {
		return nil, errors.New("error message: cut short")
	}
	e := &Error{Type: binary.BigEndian.Uint16(body), Code: binary.BigEndian.Uint16(body[2:])}
	rest := body[4:]
	if e.Type == typeExperimenter {
		if len(rest) < 4 {
			return nil, errors.New("error message: cut short")
		}
		rest = rest[4:] // the experimenter
	}
	e.Message = append([]byte(nil), rest...)
	return e, nil
}

var errorKinds = map[uint16]string{
	0:                "hello failed",
	1:                "bad request",
	2:                "bad action",
	3:                "bad instruction",
	4:                "bad match",
	5:                "flow modification failed",
	6:                "group modification failed",
	12:               "meter modification failed",
	14:               "bad property",
	17:               "bundle failed",
	typeExperimenter: "switch's own error",
}

var errorNames = map[[2]uint16]string{
	{1, 0}:   "BAD_VERSION",
	{1, 1}:   "BAD_TYPE",
	{1, 2}:   "BAD_STAT",
	{1, 3}:   "BAD_VENDOR",
	{1, 4}:   "BAD_SUBTYPE",
	{1, 5}:   "EPERM",
	{1, 6}:   "BAD_LEN",
	{1, 7}:   "BUFFER_EMPTY",
	{1, 8}:   "BUFFER_UNKNOWN",
	{1, 9}:   "BAD_TABLE_ID",
	{1, 10}:  "IS_SECONDARY",
	{1, 11}:  "BAD_PORT",
	{1, 12}:  "BAD_PACKET",
	{1, 13}:  "MULTIPART_BUFFER_OVERFLOW",
	{1, 14}:  "MULTIPART_REQUEST_TIMEOUT",
	{1, 15}:  "MULTIPART_REPLY_TIMEOUT",
	{2, 0}:   "BAD_TYPE",
	{2, 1}:   "BAD_LEN",
	{2, 2}:   "BAD_VENDOR",
	{2, 3}:   "BAD_VENDOR_TYPE",
	{2, 4}:   "BAD_OUT_PORT",
	{2, 5}:   "BAD_ARGUMENT",
	{2, 6}:   "EPERM",
	{2, 7}:   "TOO_MANY",
	{2, 8}:   "BAD_QUEUE",
	{2, 9}:   "BAD_OUT_GROUP",
	{2, 10}:  "MATCH_INCONSISTENT",
	{2, 11}:  "UNSUPPORTED_ORDER",
	{2, 12}:  "BAD_TAG",
	{2, 13}:  "BAD_SET_TYPE",
	{2, 14}:  "BAD_SET_LEN",
	{2, 15}:  "BAD_SET_ARGUMENT",
	{2, 16}:  "BAD_SET_MASK",
	{2, 17}:  "BAD_METER",
	{3, 0}:   "UNKNOWN_INST",
	{3, 1}:   "UNSUP_INST",
	{3, 2}:   "BAD_TABLE_ID",
	{3, 7}:   "BAD_LEN",
	{3, 8}:   "EPERM",
	{3, 9}:   "DUP_INST",
	{4, 0}:   "BAD_TYPE",
	{4, 1}:   "BAD_LEN",
	{4, 2}:   "BAD_TAG",
	{4, 3}:   "BAD_DL_ADDR_MASK",
	{4, 4}:   "BAD_NW_ADDR_MASK",
	{4, 5}:   "BAD_WILDCARDS",
	{4, 6}:   "BAD_FIELD",
	{4, 7}:   "BAD_VALUE",
	{4, 8}:   "BAD_MASK",
	{4, 9}:   "BAD_PREREQ",
	{4, 10}:  "DUP_FIELD",
	{4, 11}:  "EPERM",
	{5, 0}:   "UNKNOWN",
	{5, 1}:   "TABLE_FULL",
	{5, 2}:   "BAD_TABLE_ID",
	{5, 3}:   "OVERLAP",
	{5, 4}:   "EPERM",
	{5, 5}:   "BAD_TIMEOUT",
	{5, 6}:   "BAD_COMMAND",
	{5, 7}:   "BAD_FLAGS",
	{5, 9}:   "BAD_PRIORITY",
	{6, 0}:   "GROUP_EXISTS",
	{6, 1}:   "INVALID_GROUP",
	{6, 2}:   "WEIGHT_UNSUPPORTED",
	{6, 3}:   "OUT_OF_GROUPS",
	{6, 4}:   "OUT_OF_BUCKETS",
	{6, 5}:   "CHAINING_UNSUPPORTED",
	{6, 7}:   "LOOP",
	{6, 8}:   "UNKNOWN_GROUP",
	{6, 9}:   "CHAINED_GROUP",
	{6, 10}:  "BAD_TYPE",
	{6, 11}:  "BAD_COMMAND",
	{6, 12}:  "BAD_BUCKET",
	{6, 15}:  "UNKNOWN_BUCKET",
	{6, 16}:  "BUCKET_EXISTS",
	{12, 0}:  "UNKNOWN",
	{12, 1}:  "METER_EXISTS",
	{12, 2}:  "INVALID_METER",
	{12, 3}:  "UNKNOWN_METER",
	{12, 4}:  "BAD_COMMAND",
	{12, 5}:  "BAD_FLAGS",
	{12, 6}:  "BAD_RATE",
	{12, 7}:  "BAD_BURST",
	{12, 8}:  "BAD_BAND",
	{12, 9}:  "BAD_BAND_VALUE",
	{12, 10}: "OUT_OF_METERS",
	{12, 11}: "OUT_OF_BANDS",
	{17, 0}:  "UNKNOWN",
	{17, 1}:  "EPERM",
	{17, 2}:  "BAD_ID",
	{17, 3}:  "BUNDLE_EXIST",
	{17, 4}:  "BUNDLE_CLOSED",
	{17, 5}:  "OUT_OF_BUNDLES",
	{17, 6}:  "BAD_TYPE",
	{17, 7}:  "BAD_FLAGS",
	{17, 8}:  "MSG_BAD_LEN",
	{17, 9}:  "MSG_BAD_XID",
	{17, 10}: "MSG_UNSUP",
	{17, 11}: "MSG_CONFLICT",
	{17, 12}: "MSG_TOO_MANY",
	{17, 13}: "MSG_FAILED",
	{17, 14}: "TIMEOUT",
	{17, 15}: "BUNDLE_IN_PROGRESS",
}
