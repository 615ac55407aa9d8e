//! A load beside what is tested: one thread for each processor that does nothing but run.
//!
//! Races show under it that an idle machine hides, since the scheduler takes the processor from the emulated machine at
//! any instruction.

use std::hint;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Runs until dropped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Keeps all processors busy that this process may use.
    pub fn on_all_processors() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = thread::available_parallelism().map_or(1, usize::from);
        let spin = |stop: Arc<AtomicBool>| {
            move || {
                while !stop.load(Ordering::Relaxed) {
                    hint::spin_loop();
                }
            }
        };
        let threads = (0..count)
            .map(|_| thread::spawn(spin(Arc::clone(&stop))))
            .collect();
        Self { stop, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It cannot have panicked.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_runs_on_every_processor_and_ends_when_dropped() {
        let load = Load::on_all_processors();
        let stop = Arc::downgrade(&load.stop);
        assert!(!load.threads.is_empty());
        assert!(load.threads.iter().all(|thread| !thread.is_finished()));
        drop(load);
        // The threads have given their share of it back.
        assert!(stop.upgrade().is_none());
    }
}
