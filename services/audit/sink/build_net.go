package sink

import (
	"fmt"
	"net/url"
	"path/filepath"
)

// deadSettings say where lines go that a receiver refuses for good.
type deadSettings struct {
	Path    string `json:"path,omitempty"`    // Empty: in a folder beside the event log.
	MaxSize Size   `json:"maxSize,omitempty"` // Of the file and the one before it. Zero: DefaultDeadBytes.
}

func (d *deadSettings) letters(s *Spec, env *Env) (deadLetters, error) {
	out := deadLetters{path: d.Path, most: int64(d.MaxSize), logger: env.Logger}
	if out.path == "" {
		out.path = filepath.Join(env.DeadDir, url.PathEscape(s.Name)+".json")
	} else if !filepath.IsAbs(out.path) {
		return out, fmt.Errorf("deadLetters.path %q: write an absolute path", out.path)
	}
	if out.most == 0 {
		out.most = DefaultDeadBytes
	}
	return out, nil
}

// prepare is what all that have dead letters begin with. The format otherwise is
// JSON.
func (d *deadSettings) prepare(s *Spec, env *Env) (Format, deadLetters, error) {
	format, err := s.format(env, FormatJSON)
	if err != nil {
		return format, deadLetters{}, err
	}
	letters, err := d.letters(s, env)
	return format, letters, err
}

// otlpSettings are of type otlp.
type otlpSettings struct {
	Endpoint        string            `json:"endpoint"`
	TLS             *TLSFiles         `json:"tls,omitempty"`
	Insecure        bool              `json:"insecure,omitempty"`
	Headers         map[string]string `json:"headers,omitempty"`
	BearerTokenFile string            `json:"bearerTokenFile,omitempty"`
	DeadLetters     deadSettings      `json:"deadLetters,omitempty"`
}

func (f *otlpSettings) output(s *Spec, env *Env) (Output, Format, error) {
	format, dead, err := f.DeadLetters.prepare(s, env)
	if err != nil {
		return nil, format, err
	}
	out, err := NewOTLP(OTLPConfig{Endpoint: f.Endpoint, TLS: f.TLS, Insecure: f.Insecure, Headers: f.Headers, BearerTokenFile: f.BearerTokenFile, Format: format}, dead)
	return out, format, err
}

// httpSettings are of type http.
type httpSettings struct {
	URL             string            `json:"url"`
	TLS             *TLSFiles         `json:"tls,omitempty"`
	Insecure        bool              `json:"insecure,omitempty"`
	Headers         map[string]string `json:"headers,omitempty"`
	BearerTokenFile string            `json:"bearerTokenFile,omitempty"`
	BasicAuth       struct {
		Username     string `json:"username"`
		PasswordFile string `json:"passwordFile"`
	} `json:"basicAuth,omitempty"`
	Gzip        *bool        `json:"gzip,omitempty"` // Absent: true.
	DeadLetters deadSettings `json:"deadLetters,omitempty"`
}

func (f *httpSettings) output(s *Spec, env *Env) (Output, Format, error) {
	format, dead, err := f.DeadLetters.prepare(s, env)
	if err != nil {
		return nil, format, err
	}
	out, err := NewHTTP(HTTPConfig{URL: f.URL, TLS: f.TLS, Insecure: f.Insecure, Headers: f.Headers, BearerTokenFile: f.BearerTokenFile,
		Username: f.BasicAuth.Username, PasswordFile: f.BasicAuth.PasswordFile, Plain: f.Gzip != nil && !*f.Gzip, Format: format}, dead)
	return out, format, err
}

// natsSettings are of type nats.
type natsSettings struct {
	Servers         []string     `json:"servers"`
	Subject         string       `json:"subject"`
	TLS             *TLSFiles    `json:"tls,omitempty"`
	Insecure        bool         `json:"insecure,omitempty"`
	CredentialsFile string       `json:"credentialsFile,omitempty"`
	User            string       `json:"user,omitempty"`
	PasswordFile    string       `json:"passwordFile,omitempty"`
	TokenFile       string       `json:"tokenFile,omitempty"`
	DeadLetters     deadSettings `json:"deadLetters,omitempty"`
}

func (f *natsSettings) output(s *Spec, env *Env) (Output, Format, error) {
	format, dead, err := f.DeadLetters.prepare(s, env)
	if err != nil {
		return nil, format, err
	}
	out, err := NewNATS(NATSConfig{Servers: f.Servers, Subject: f.Subject, TLS: f.TLS, Insecure: f.Insecure, CredentialsFile: f.CredentialsFile,
		User: f.User, PasswordFile: f.PasswordFile, TokenFile: f.TokenFile, Format: format}, dead)
	return out, format, err
}
