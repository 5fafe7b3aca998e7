package sink

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/weirnet/weir/storage/eventlog"
)

// Env is what all sinks of a configuration share.
type Env struct {
	Log      *eventlog.Log
	Formats  Formats
	Rotation Rotation // Of files that say nothing else.
	DeadDir  string   // Folder of dead letters, for sinks that name no file.
	Logger   hclog.Logger
}

// New makes the sink.
func (s *Spec) New(env *Env) (*Sink, error) {
	filter, err := s.Filter.filter()
	if err != nil {
		return nil, errorOf(s, err)
	}
	out, format, err := s.settings.output(s, env)
	if err != nil {
		return nil, errorOf(s, err)
	}
	return New(Config{Name: s.Name, Type: s.Type, Format: format.Name, Log: env.Log, Output: out, Key: format.Key, Filter: filter, Logger: env.Logger})
}

// errorOf says which sink an error is of.
func errorOf(s *Spec, err error) error { return fmt.Errorf("sink %s: %w", s.Name, err) }

// Paths are the files that the sink writes, for nobody else to write.
func (s *Spec) Paths() []string {
	var path string
	switch f := s.settings.(type) {
	case *fileSettings:
		path = f.Path
	case *otlpSettings:
		path = f.DeadLetters.Path
	case *httpSettings:
		path = f.DeadLetters.Path
	case *natsSettings:
		path = f.DeadLetters.Path
	}
	if path == "" {
		return nil
	}
	return []string{path}
}

// format is the one that is asked for, or else another.
func (s *Spec) format(env *Env, otherwise string) (Format, error) {
	if s.Format != "" {
		otherwise = s.Format
	}
	return env.Formats.Named(otherwise)
}

// fileSettings are of type file.
type fileSettings struct {
	Path    string    `json:"path"` // With {node}: a file for each node.
	MaxSize *Size     `json:"maxSize,omitempty"`
	MaxAge  *Duration `json:"maxAge,omitempty"`
	Keep    *int      `json:"keep,omitempty"`
	KeepFor *Duration `json:"keepFor,omitempty"`
	Gzip    *bool     `json:"gzip,omitempty"`
}

func (f *fileSettings) output(s *Spec, env *Env) (Output, Format, error) {
	format, err := s.format(env, FormatJSON)
	if err != nil {
		return nil, format, err
	}
	if !filepath.IsAbs(f.Path) {
		return nil, format, fmt.Errorf("path %q: write an absolute path, such as /var/log/weir/audit.json or /var/log/weir/{node}/np.log", f.Path)
	}
	if rest := strings.ReplaceAll(f.Path, "{node}", ""); strings.ContainsAny(rest, "{}") {
		return nil, format, fmt.Errorf("path %q: nothing but {node} is filled in", f.Path)
	}
	r := env.Rotation
	if f.MaxSize != nil {
		r.MaxBytes = int64(*f.MaxSize)
	}
	if f.MaxAge != nil {
		r.Every = time.Duration(*f.MaxAge)
	}
	if f.Keep != nil {
		if r.Keep = *f.Keep; r.Keep < 0 {
			return nil, format, errors.New("keep: less than none")
		}
	}
	if f.KeepFor != nil {
		r.KeepAge = time.Duration(*f.KeepFor)
	}
	if f.Gzip != nil {
		r.Gzip = *f.Gzip
	}
	return &Files{Path: NodePath(f.Path), Format: format, Rotation: r, Logger: env.Logger}, format, nil
}

// syslogSettings are of type syslog.
type syslogSettings struct {
	Target string    `json:"target"` // udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT.
	TLS    *TLSFiles `json:"tls,omitempty"`
}

func (f *syslogSettings) output(s *Spec, env *Env) (Output, Format, error) {
	format, err := s.format(env, FormatSyslog)
	if err != nil {
		return nil, format, err
	}
	out, err := NewSyslog(f.Target, f.TLS, format)
	return out, format, err
}
