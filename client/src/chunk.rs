//! File bytes on their way from the socket to a file: lent, and kept without a copy where their memory
//! can be shared.

use std::ops::{Deref, Range};
use std::sync::Arc;

/// Some bytes, lent.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    bytes: &'a [u8],
    /// Where they lie, if that can be shared.
    memory: Option<&'a Arc<Vec<u8>>>,
}

/// Some bytes, kept: nobody writes to their memory meanwhile.
#[derive(Debug, Clone)]
pub struct Kept {
    memory: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl<'a> Chunk<'a> {
    /// A part of memory that can be shared.
    pub fn of(memory: &'a Arc<Vec<u8>>, range: Range<usize>) -> Self {
        Self { bytes: &memory[range], memory: Some(memory) }
    }

    /// The bytes before and from `at` on.
    pub fn split_at(self, at: usize) -> (Self, Self) {
        let (head, tail) = self.bytes.split_at(at);
        (Self { bytes: head, ..self }, Self { bytes: tail, ..self })
    }

    /// Whether to keep them holds so little else that it is better than a copy: their memory is used for
    /// nothing else meanwhile.
    pub fn is_worth_keeping(&self) -> bool {
        self.memory.is_some_and(|memory| is_worth_keeping(self.len(), memory))
    }

    /// To be used after this call is over.
    pub fn keep(self) -> Kept {
        match self.memory {
            Some(memory) => {
                let begin = self.bytes.as_ptr().addr() - memory.as_ptr().addr();
                Kept { memory: Arc::clone(memory), range: begin..begin + self.bytes.len() }
            }
            None => Kept { memory: Arc::new(self.bytes.to_vec()), range: 0..self.bytes.len() },
        }
    }
}

impl Kept {
    /// As [`Chunk::is_worth_keeping`].
    pub fn is_worth_keeping(&self) -> bool {
        is_worth_keeping(self.len(), &self.memory)
    }
}

fn is_worth_keeping(length: usize, memory: &[u8]) -> bool {
    length >= memory.len() / 4
}

/// Bytes that cannot be shared.
impl<'a> From<&'a [u8]> for Chunk<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, memory: None }
    }
}

impl Deref for Chunk<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl PartialEq for Chunk<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Chunk<'_> {}

impl Deref for Kept {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_bytes_are_the_same() {
        let memory = Arc::new((0..100).collect::<Vec<u8>>());
        let (head, tail) = Chunk::of(&memory, 10..30).split_at(5);
        let (head, tail, copy) = (head.keep(), tail.keep(), Chunk::from(&memory[3..6]).keep());
        assert_eq!(Arc::strong_count(&memory), 3);
        assert_eq!((&*head, &*tail, &*copy), (&memory[10..15], &memory[15..30], &memory[3..6]));
    }
}
