package invariant

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What a run's folder has:
//
//	evidence.json.gz   Evidence
//	audit/             the collector's files: audit*.json*, NODE/np*.log*
//	logs/NAME.log      what processes wrote
const (
	evidenceFile = "evidence.json.gz"
	AuditDir     = "audit"
	LogsDir      = "logs"
)

// Save writes the evidence into a run's folder.
func Save(dir string, e *Evidence) error {
	f, err := os.Create(filepath.Join(dir, evidenceFile))
	if err != nil {
		return err
	}
	z := gzip.NewWriter(f)
	return errors.Join(json.NewEncoder(z).Encode(e), z.Close(), f.Close())
}

// Load reads a run's folder.
func Load(dir string) (*Evidence, error) {
	text, err := read(filepath.Join(dir, evidenceFile))
	if err != nil {
		return nil, err
	}
	e := &Evidence{Files: make(map[string]File), Logs: make(map[string]string)}
	if err := json.Unmarshal(text, e); err != nil {
		return nil, fmt.Errorf("%s: %w", evidenceFile, err)
	}
	audit := filepath.Join(dir, AuditDir)
	if e.Files[JSONFile], err = whole(audit, "audit"); err != nil {
		return nil, err
	}
	nodes, err := filepath.Glob(filepath.Join(audit, "*", "np.log"))
	if err != nil {
		return nil, err
	}
	for _, path := range nodes {
		node := filepath.Dir(path)
		if e.Files[filepath.Base(node)], err = whole(node, "np"); err != nil {
			return nil, err
		}
	}
	logs, err := filepath.Glob(filepath.Join(dir, LogsDir, "*.log"))
	if err != nil {
		return nil, err
	}
	for _, path := range logs {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		e.Logs[strings.TrimSuffix(filepath.Base(path), ".log")] = string(text)
	}
	return e, nil
}

// whole is a file with all that were set aside of it.
func whole(dir, name string) (out File, err error) {
	paths, err := filepath.Glob(filepath.Join(dir, name+`[.\-]*`))
	if err != nil {
		return out, err
	}
	slices.Sort(paths)
	for _, path := range paths {
		text, err := read(path)
		if err != nil {
			return out, err
		}
		for line := range strings.Lines(string(text)) {
			out.Lines = append(out.Lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return out, nil
}

// read reads a file, which is compressed if its name says so.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if !strings.HasSuffix(path, ".gz") {
		return io.ReadAll(f)
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return text, nil
}
