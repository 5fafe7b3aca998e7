package policy

import (
	"context"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/source/manifests"
	"github.com/weirnet/weir/storage"
)

// Source is where a Service takes its objects from.
type Source interface {
	// Run reads until the context ends.
	Run(ctx context.Context) error
	// Next waits for a batch; it is called by one goroutine, beside Run. While
	// nobody calls it, changes gather. An error ends the service, or is the
	// context's.
	Next(ctx context.Context) (Batch, error)
}

// Batch is what a source read at once. It becomes one revision.
type Batch struct {
	Events   []api.Event
	Position storage.Position // How far the source has been read with it.
	Synced   bool             // All that there was at the start is in, with this batch.
	Problems int              // What is known to be not in force as it stands.
}

// folder is a folder of manifests as a Source.
type folder struct{ *manifests.Source }

// Next implements Source.
func (f folder) Next(ctx context.Context) (Batch, error) {
	select {
	case b, open := <-f.Batches():
		if !open { // Its Run has ended, and so does the service.
			<-ctx.Done()
			return Batch{}, ctx.Err()
		}
		return Batch{Events: b.Events, Position: storage.Position{"manifests": b.Position}, Synced: b.Synced, Problems: len(b.Problems)}, nil
	case <-ctx.Done():
		return Batch{}, ctx.Err()
	}
}
