//! Where the time of a thread goes: waiting for the server, waiting for something to do, on the processor.
//! What is left of it is waiting for the disk.

use std::fs;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// What a thread's time was spent with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shares {
    /// All of it.
    pub wall: Duration,
    /// Waiting until the server had sent something.
    pub waited: Duration,
    /// With nothing to do.
    pub idle: Duration,
    /// On a processor, or ready to run while others had it.
    pub cpu: Duration,
}

impl Shares {
    /// Both together.
    pub fn add(&mut self, other: &Self) {
        self.wall += other.wall;
        self.waited += other.waited;
        self.idle += other.idle;
        self.cpu += other.cpu;
    }

    /// What is left: the thread could not run, and did not wait for the server.
    pub fn blocked(&self) -> Duration {
        self.busy().saturating_sub(self.waited).saturating_sub(self.cpu)
    }

    /// All but where there was nothing to do.
    pub fn busy(&self) -> Duration {
        self.wall.saturating_sub(self.idle)
    }
}

/// Measures the thread that made it, from then on.
#[derive(Debug)]
pub struct Meter {
    began: Instant,
    cpu: Duration,
}

impl Meter {
    /// From now on.
    pub fn start() -> Self {
        Self { began: Instant::now(), cpu: thread_cpu() }
    }

    /// Until now, with what the thread itself knows.
    pub fn stop(&self, waited: Duration, idle: Duration) -> Shares {
        let (wall, cpu) = (self.began.elapsed(), thread_cpu().saturating_sub(self.cpu));
        // What a wait took longer because others had the processor belongs there.
        let asleep = wall.saturating_sub(idle).saturating_sub(cpu);
        Shares { wall, waited: waited.min(asleep), idle, cpu }
    }

    /// The processor's part alone, for a thread that works for another, whose time it is.
    pub fn stop_helper(&self) -> Shares {
        Shares { cpu: thread_cpu().saturating_sub(self.cpu), ..Shares::default() }
    }
}

/// What the thread has had of the processor, and how long it has waited for one.
fn thread_cpu() -> Duration {
    // "running waiting slices", in nanoseconds; not every kernel has it.
    let measured = fs::read_to_string("/proc/thread-self/schedstat").ok().and_then(|text| {
        let mut numbers = text.split_ascii_whitespace().map(str::parse::<u64>);
        Some(Duration::from_nanos(numbers.next()?.ok()?.checked_add(numbers.next()?.ok()?)?))
    });
    measured.unwrap_or_else(|| {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_and_rest() {
        let meter = Meter::start();
        let mut number = 0u64;
        while meter.stop(Duration::ZERO, Duration::ZERO).cpu < Duration::from_millis(5) {
            number = std::hint::black_box(number + 1);
        }
        let slept = Instant::now();
        std::thread::sleep(Duration::from_millis(20));
        let slept = slept.elapsed();
        let shares = meter.stop(slept, Duration::ZERO);
        assert!(shares.cpu >= Duration::from_millis(5) && shares.waited >= Duration::from_millis(10));
        assert!(shares.wall >= shares.waited + Duration::from_millis(5));
        let rest = meter.stop(Duration::ZERO, slept);
        assert!(rest.busy() <= rest.wall - slept);
        assert_eq!(meter.stop_helper().wall, Duration::ZERO);
    }

    #[test]
    fn what_is_left_is_blocked() {
        let seconds = Duration::from_secs;
        let shares = Shares { wall: seconds(10), waited: seconds(2), idle: seconds(1), cpu: seconds(3) };
        assert_eq!(shares.blocked(), seconds(4));
        assert_eq!(Shares { cpu: seconds(20), ..shares }.blocked(), Duration::ZERO);
    }
}
