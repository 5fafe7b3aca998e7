package audit

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/services/audit/sink"
)

// projection is what reads the log at its own pace and keeps a cursor.
type projection interface {
	// Run projects until the context ends.
	Run(ctx context.Context) error
	Stats() sink.Stats
}

// addSinks makes the projections: those of flags, and those of Config.Sinks. A
// sink's name names its cursor: it must not depend on what may change without
// making another output of it.
func (s *Service) addSinks() error {
	c := &s.cfg
	zone := c.LogZone
	if zone == nil {
		zone = time.Local
	}
	named := c.NPLogIsolation == IsolationNamed
	env := &sink.Env{Log: s.log, Formats: sink.NewFormats(record.NPLog{Zone: zone, Named: named}), Rotation: c.Rotation, DeadDir: filepath.Join(c.Dir, "dead-letters"), Logger: c.Logger.Named("sink")}
	if err := s.addFlagSinks(env); err != nil {
		return err
	}
	return s.addFileSinks(env)
}

// addFlagSinks makes those that have flags of their own. Their cursors have the
// names that they have had ever since.
func (s *Service) addFlagSinks(env *sink.Env) error {
	c := &s.cfg
	np, json := env.Formats[sink.FormatNPLog], env.Formats[sink.FormatJSON]
	if c.NPLogDir != "" {
		if err := s.addSink(env, sink.Config{Name: "np-log-dir " + c.NPLogDir, Type: sink.TypeFile, Output: sink.NPLogs(c.NPLogDir, np, c.Rotation, env.Logger)}, np); err != nil {
			return err
		}
	}
	if c.NPLog != "" {
		if err := s.addSink(env, sink.Config{Name: "np-log " + c.NPLog, Type: sink.TypeFile, Filter: &record.Filter{Nodes: []string{c.Node}},
			Output: sink.OneFile(c.NPLog, np, c.Rotation, env.Logger)}, np); err != nil {
			return err
		}
	}
	if c.JSONFile != "" {
		if err := s.addSink(env, sink.Config{Name: "json " + c.JSONFile, Type: sink.TypeFile, Output: sink.OneFile(c.JSONFile, json, c.Rotation, env.Logger)}, json); err != nil {
			return err
		}
	}
	for _, target := range c.Syslog {
		format := env.Formats[sink.FormatSyslog]
		out, err := sink.NewSyslog(target, nil, format)
		if err != nil {
			return err
		}
		if err := s.addSink(env, sink.Config{Name: out.Name(), Type: sink.TypeSyslog, Output: out}, format); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) addSink(env *sink.Env, cfg sink.Config, format sink.Format) error {
	cfg.Log, cfg.Format, cfg.Key, cfg.Logger = env.Log, format.Name, format.Key, env.Logger
	k, err := sink.New(cfg)
	if err != nil {
		return err
	}
	s.sinks = append(s.sinks, k)
	return nil
}

// addFileSinks makes those of the configuration file.
func (s *Service) addFileSinks(env *sink.Env) error {
	if s.cfg.Sinks == "" {
		return nil
	}
	specs, err := sink.ReadSpecs(s.cfg.Sinks)
	if err != nil {
		return fmt.Errorf("--sinks: %w", err)
	}
	names, paths := map[string]bool{forwardSink: true}, make(map[string]string)
	for _, k := range s.sinks {
		names[k.Stats().Name] = true
	}
	for path, flag := range map[string]string{s.cfg.NPLog: "--np-log", s.cfg.JSONFile: "--json-file", filepath.Join(s.cfg.NPLogDir, "{node}", "np.log"): "--np-log-dir"} {
		paths[filepath.Clean(path)] = flag
	}
	for _, spec := range specs {
		if names[spec.Name] {
			return fmt.Errorf("--sinks: sink %s: name: a flag's sink has it, and so its cursor", spec.Name)
		}
		for _, path := range spec.Paths() {
			path = filepath.Clean(path)
			if other := paths[path]; other != "" {
				return fmt.Errorf("--sinks: sink %s: path: %s is %s's already", spec.Name, path, other)
			}
			paths[path] = "sink " + spec.Name
		}
		k, err := spec.New(env)
		if err != nil {
			return fmt.Errorf("--sinks: %w", err)
		}
		s.sinks = append(s.sinks, k)
	}
	return nil
}

// Reopen has all sinks open their files anew, as after logrotate.
func (s *Service) Reopen() {
	s.logger.Info("opening files anew")
	for _, k := range s.sinks {
		if r, ok := k.(interface{ Reopen() }); ok {
			r.Reopen()
		}
	}
}
