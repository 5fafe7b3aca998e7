package sink

import (
	"fmt"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/audit/record"
)

// Format is how a line is written.
type Format struct {
	Name      string
	Key       record.Key // Which packets are one line in it.
	MediaType string     // Of one line a line.
	// Append appends a line, with or without newline. Nothing leaves it out.
	Append func(b []byte, l *record.Line) []byte
	// Syslog appends a line as a message of RFC 5424.
	Syslog func(b []byte, l *record.Line) []byte
}

// Formats are the formats by name.
type Formats map[string]Format

// Names of formats that have a part in defaults.
const (
	FormatNPLog  = "np.log"
	FormatJSON   = "json"
	FormatSyslog = "rfc5424"
)

// NewFormats returns all there are. np.log is as told, in messages of syslog too.
func NewFormats(np record.NPLog) Formats {
	printed := record.KeyPrinted
	if np.Named {
		printed = record.KeyNamed
	}
	syslog := record.DefaultSyslog()
	syslog.NPLog = np
	const ndjson, text = "application/x-ndjson", "text/plain; charset=utf-8"
	out := make(Formats)
	for _, f := range []Format{
		{FormatNPLog, printed, text, np.Append, nil},
		{FormatJSON, record.KeyAll, ndjson, record.AppendJSON, nil},
		{FormatSyslog, record.KeyAll, text, syslog.Append, nil},
		{"cef", record.KeyAll, text, record.AppendCEF, nil},
		{"ocsf", record.KeyAll, ndjson, record.AppendOCSF, nil},
		{"ecs", record.KeyAll, ndjson, record.AppendECS, nil},
	} {
		if f.Syslog = syslog.Append; f.Name != FormatSyslog {
			line := f.Append
			f.Syslog = func(b []byte, l *record.Line) []byte { return syslog.AppendWith(b, l, line) }
		}
		out[f.Name] = f
	}
	return out
}

// Named returns a format.
func (f Formats) Named(name string) (Format, error) {
	if format, ok := f[name]; ok {
		return format, nil
	}
	names := make([]string, 0, len(f))
	for name := range f {
		names = append(names, name)
	}
	slices.Sort(names)
	return Format{}, fmt.Errorf("format %q: write one of %s", name, strings.Join(names, ", "))
}

// line appends a line with its newline.
func (f *Format) line(b []byte, l *record.Line) []byte {
	start := len(b)
	b = f.Append(b, l)
	if len(b) > start && b[len(b)-1] != '\n' {
		b = append(b, '\n')
	}
	return b
}

// message appends a line without newline.
func (f *Format) message(b []byte, l *record.Line) []byte {
	start := len(b)
	b = f.Append(b, l)
	if len(b) > start && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return b
}
