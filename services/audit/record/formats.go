package record

// Append appends what a format has of a line, with its newline; nothing where
// the format has no line for it.
type Append func(b []byte, l *Line) []byte

// Formats are the encoders by the names that flags and configurations have.
// Those of np.log and RFC 5424 are with their defaults; an RFC 5424 message has
// no newline, since not every transport has one.
var Formats = map[string]Append{
	"np.log":  NPLog{}.Append,
	"json":    AppendJSON,
	"rfc5424": DefaultSyslog().Append,
	"cef":     AppendCEF,
	"ocsf":    AppendOCSF,
	"ecs":     AppendECS,
}
