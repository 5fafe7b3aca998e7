package record

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"
)

// jsonText writes one line of JSON. Names are literals of ours and written as
// they are; every value from outside goes through quote. A member follows a
// comma unless it is the first, which the byte before tells: no value ends with
// an opening bracket.
type jsonText struct{ b []byte }

func (j *jsonText) comma() {
	if c := j.b[len(j.b)-1]; c != '{' && c != '[' {
		j.b = append(j.b, ',')
	}
}

// key begins a member.
func (j *jsonText) key(name string) {
	j.comma()
	j.b = append(j.b, '"')
	j.b = append(j.b, name...)
	j.b = append(j.b, '"', ':')
}

// open begins a member that is an object, and returns where, for end.
func (j *jsonText) open(name string) int {
	at := len(j.b)
	j.key(name)
	j.b = append(j.b, '{')
	return at
}

// end ends the object that began at a place, and takes an empty one back.
func (j *jsonText) end(at int) {
	if j.b[len(j.b)-1] == '{' {
		j.b = j.b[:at]
		return
	}
	j.b = append(j.b, '}')
}

func (j *jsonText) text(name, value string) {
	j.key(name)
	j.b = appendQuoted(j.b, value)
}

// optional is text, without what is empty.
func (j *jsonText) optional(name, value string) {
	if value != "" {
		j.text(name, value)
	}
}

func (j *jsonText) unsigned(name string, v uint64) {
	j.key(name)
	j.b = strconv.AppendUint(j.b, v, 10)
}

func (j *jsonText) signed(name string, v int64) {
	j.key(name)
	j.b = strconv.AppendInt(j.b, v, 10)
}

// number leaves out what is absent.
func (j *jsonText) number(name string, n Number) {
	if n.Set {
		j.unsigned(name, uint64(n.Value))
	}
}

func (j *jsonText) truth(name string, v bool) {
	j.key(name)
	j.b = strconv.AppendBool(j.b, v)
}

func (j *jsonText) time(name string, t time.Time) {
	j.key(name)
	j.b = append(j.b, '"')
	j.b = appendStamp(j.b, t)
	j.b = append(j.b, '"')
}

// address leaves out what is not valid.
func (j *jsonText) address(name string, a netip.Addr) {
	if a.IsValid() {
		j.key(name)
		j.b = append(j.b, '"')
		j.b = a.AppendTo(j.b) // Without a zone: the decoder makes none.
		j.b = append(j.b, '"')
	}
}

// policies writes a list of references, empty too.
func (j *jsonText) policies(name string, refs []Policy) {
	j.key(name)
	j.b = append(j.b, '[')
	for _, ref := range refs {
		j.comma()
		j.b = appendQuoted(j.b, ref.String())
	}
	j.b = append(j.b, ']')
}

func (j *jsonText) list(name string, values ...string) {
	j.key(name)
	j.b = append(j.b, '[')
	for _, v := range values {
		j.comma()
		j.b = appendQuoted(j.b, v)
	}
	j.b = append(j.b, ']')
}

// manifest writes an object as it was given, on one line. What is no JSON object
// is left out: a line must be JSON whatever it tells of.
func (j *jsonText) manifest(name string, m []byte) {
	if !isObject(m) {
		return
	}
	j.key(name)
	j.b = appendCompact(j.b, m)
}

func isObject(m []byte) bool {
	for _, c := range m {
		switch c {
		case ' ', '\t', '\r', '\n':
			continue
		}
		return c == '{' && json.Valid(m)
	}
	return false
}

// appendCompact appends valid JSON without white space between its tokens, and
// with what might end a line escaped within its strings.
func appendCompact(b, m []byte) []byte {
	within := false
	for i := 0; i < len(m); i++ {
		c := m[i]
		switch {
		case !within && (c == ' ' || c == '\t' || c == '\r' || c == '\n'):
		case c == '"':
			within = !within
			b = append(b, c)
		case within && c == '\\':
			i++
			b = append(b, c, m[i])
		case within && c >= 0x7f:
			r, n := utf8.DecodeRune(m[i:])
			b = appendRune(b, r, m[i:i+n])
			i += n - 1
		default:
			b = append(b, c)
		}
	}
	return b
}

// appendQuoted appends a JSON string. What is not UTF-8 is replaced.
func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			switch {
			case c == '"' || c == '\\':
				b = append(b, '\\', c)
			case c < ' ' || c == 0x7f:
				b = append(b, `\u00`...)
				b = append(b, hex[c>>4], hex[c&15])
			default:
				b = append(b, c)
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		b = appendRune(b, r, s[i:i+n])
		i += n
	}
	return append(b, '"')
}

// appendRune appends a character of a JSON string that is not ASCII that prints.
// Some readers take a few of them for ends of lines.
func appendRune[T string | []byte](b []byte, r rune, as T) []byte {
	switch {
	case r == utf8.RuneError && len(as) == 1:
		return append(b, "\ufffd"...)
	case r == '\u2028' || r == '\u2029' || r < 0xa0:
		b = append(b, `\u`...)
		return append(b, hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
	}
	return append(b, as...)
}
