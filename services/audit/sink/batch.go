package sink

import (
	"context"
	"errors"
	mrand "math/rand/v2"
	"time"
)

// Limits of a batch.
const (
	maxBatchLines = 1000
	maxBatchBytes = 1 << 20 // One line may be larger.
	postTimeout   = 30 * time.Second
)

// batcher gathers what a receiver takes together, and sends it until it has an
// answer. It is for one goroutine, and holds one batch.
type batcher[T any] struct {
	// post sends a batch. Nil: the receiver has it. A *refusal is for good; after
	// any other error the same batch is sent again.
	post    func(ctx context.Context, items []T) error
	dead    func(item T, reason error) error // Takes what is refused.
	trouble func(err error)

	items []T
	bytes int
}

// refusal is a receiver's answer to what it will never take.
type refusal struct{ error }

// laterError is an answer that says when to try again.
type laterError struct {
	error
	after time.Duration
}

func (b *batcher[T]) reset() { b.items, b.bytes = nil, 0 }

// add takes an item, and sends the batch that is full with it.
func (b *batcher[T]) add(ctx context.Context, item T, size int) error {
	if len(b.items) > 0 && b.bytes+size > maxBatchBytes {
		if err := b.flush(ctx); err != nil {
			return err
		}
	}
	b.items = append(b.items, item)
	b.bytes += size
	if len(b.items) < maxBatchLines {
		return nil
	}
	return b.flush(ctx)
}

// flush sends what there is.
func (b *batcher[T]) flush(ctx context.Context) error {
	if len(b.items) == 0 {
		return nil
	}
	if err := b.send(ctx, b.items); err != nil {
		return err
	}
	clear(b.items)
	b.items, b.bytes = b.items[:0], 0
	return nil
}

// send sends a batch until it is taken. One that is refused is sent in halves,
// to find what is refused of it.
func (b *batcher[T]) send(ctx context.Context, items []T) error {
	for pause := minBackoff; ; pause = min(2*pause, maxBackoff) {
		err := b.try(ctx, items)
		var refused *refusal
		switch {
		case err == nil:
			return nil
		case errors.As(err, &refused) && len(items) == 1:
			return b.dead(items[0], err)
		case errors.As(err, &refused):
			half := len(items) / 2
			if err := b.send(ctx, items[:half]); err != nil {
				return err
			}
			return b.send(ctx, items[half:])
		case ctx.Err() != nil:
			return ctx.Err()
		}
		b.trouble(err)
		wait := pause/2 + mrand.N(pause/2+1)
		var later *laterError
		if errors.As(err, &later) {
			wait = max(wait, later.after)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (b *batcher[T]) try(ctx context.Context, items []T) error {
	ctx, cancel := context.WithTimeout(ctx, postTimeout)
	defer cancel()
	return b.post(ctx, items)
}
