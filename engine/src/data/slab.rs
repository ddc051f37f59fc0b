//! Places for what is in flight, found again by the number in a token.
//!
//! Leaves to others: what a place holds. Invariant: a number stays its
//! holder's until it is taken out.

/// Values by number.
pub struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    /// Keeps `value`; gives its number.
    pub fn insert(&mut self, value: T) -> usize {
        if let Some(number) = self.free.pop() {
            self.places[number] = Some(value);
            return number;
        }
        self.places.push(Some(value));
        self.places.len() - 1
    }

    /// What has this number.
    pub fn get(&self, number: usize) -> Option<&T> {
        self.places.get(number)?.as_ref()
    }

    /// What has this number.
    pub fn get_mut(&mut self, number: usize) -> Option<&mut T> {
        self.places.get_mut(number)?.as_mut()
    }

    /// Takes it out; the number is free.
    pub fn remove(&mut self, number: usize) -> Option<T> {
        let value = self.places.get_mut(number)?.take();
        if value.is_some() {
            self.free.push(number);
        }
        value
    }

    /// Takes it out for a moment; the number stays its own.
    pub fn lend(&mut self, number: usize) -> Option<T> {
        self.places.get_mut(number)?.take()
    }

    /// Puts what was lent back.
    pub fn give_back(&mut self, number: usize, value: T) {
        let before = self.places[number].replace(value);
        assert!(before.is_none(), "what was lent left its place empty");
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.places.iter().flatten()
    }

    /// All values with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.places
            .iter()
            .enumerate()
            .filter_map(|(number, place)| Some((number, place.as_ref()?)))
    }

    /// All values.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places.iter_mut().flatten()
    }

    /// How many numbers were ever in use at once.
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// True when nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_reused_only_once_it_is_free() {
        let mut slab = Slab::default();
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.insert('c'), a);
        assert_eq!((slab.get(a), slab.get(b)), (Some(&'c'), Some(&'b')));
        assert_eq!(slab.iter().count(), 2);
    }
}
