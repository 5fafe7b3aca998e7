package eventlog

import "time"

// maxSetBack is how far the clock may be set back with arrivals still ascending.
// Further back it was wrong before, and is believed.
const maxSetBack = 24 * time.Hour

// arrival is the time of arrival that is stored with a block: not before that of
// the newest block, so that who looks for a time by bisection finds it.
func arrival(received, newest time.Time) time.Time {
	received = received.Round(0) // Without its monotonic reading, which takes no part in steps.
	if behind := newest.Sub(received); behind > 0 && behind <= maxSetBack {
		return newest
	}
	return received
}

// stepSlack is what the wall clock and the monotonic one may differ by between two
// looks.
const stepSlack = time.Second

// ageClock is the time by which records are old. Where the wall clock is set
// forward, it lags by as much until all that arrived before has been here for the
// age, so that nothing is removed before its time.
type ageClock struct {
	age    time.Duration
	wall   time.Time // At the last look,
	uptime time.Duration
	lag    time.Duration
	until  time.Duration // Uptime at which nothing is left of before the step.
}

// at looks at both clocks, and says which time it is.
func (c *ageClock) at(wall time.Time, uptime time.Duration) time.Time {
	wall = wall.Round(0) // Without its monotonic reading.
	if !c.wall.IsZero() {
		step := wall.Sub(c.wall) - (uptime - c.uptime)
		switch {
		case step > stepSlack:
			c.lag, c.until = c.lag+step, uptime+c.age
		case step < -stepSlack:
			c.lag = max(0, c.lag+step)
		}
	}
	c.wall, c.uptime = wall, uptime
	if uptime >= c.until {
		c.lag = 0
	}
	return wall.Add(-c.lag)
}
