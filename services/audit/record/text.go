package record

import (
	"net/netip"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"
)

// appendWord appends a string as one word of a line: spaces, what does not
// print and backslashes are escaped as in Go. Empty is <nil>.
func appendWord(b []byte, s string) []byte {
	if s == "" {
		return append(b, "<nil>"...)
	}
	start := 0
	for i := 0; i < len(s); {
		r, n := rune(s[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRuneInString(s[i:])
		}
		if r > ' ' && r < 0x7f && r != '\\' || r > 0x7f && unicode.IsGraphic(r) && !unicode.IsSpace(r) && !(r == utf8.RuneError && n == 1) {
			i += n
			continue
		}
		b = append(b, s[start:i]...)
		switch {
		case r == '\\':
			b = append(b, `\\`...)
		case r == ' ':
			b = append(b, `\x20`...)
		case r == utf8.RuneError && n == 1:
			b = append(b, `\x`...)
			b = append(b, hex[s[i]>>4], hex[s[i]&15])
		case r < utf8.RuneSelf:
			b = append(b, `\x`...)
			b = append(b, hex[r>>4], hex[r&15])
		default:
			q := strconv.QuoteRuneToASCII(r)
			b = append(b, q[1:len(q)-1]...)
		}
		i += n
		start = i
	}
	return append(b, s[start:]...)
}

const hex = "0123456789abcdef"

func appendNumber(b []byte, n Number) []byte {
	if !n.Set {
		return append(b, "<nil>"...)
	}
	return strconv.AppendUint(b, uint64(n.Value), 10)
}

func appendAddress(b []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return append(b, "<nil>"...)
	}
	return a.AppendTo(b)
}

func appendStamp(b []byte, t time.Time) []byte { return t.UTC().AppendFormat(b, time.RFC3339Nano) }
