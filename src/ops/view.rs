//! Row-major matrix views with an explicit leading dimension: what every operation takes and gives.

use std::marker::PhantomData;

/// Element of a floating-point matrix: `f32` in the CPU executor, `f64` in the reference executor.
pub trait Elem: Copy + Send + Sync + Default + PartialEq + std::fmt::Debug + 'static {
    /// Nearest value of this type.
    fn from_f64(value: f64) -> Self;
    /// Exact widening.
    fn to_f64(self) -> f64;
    /// Copies f32 values of the same number.
    fn fill_from_f32(to: &mut [Self], from: &[f32]);
    /// Copies values to f32 values of the same number, narrowed.
    fn copy_to_f32(from: &[Self], to: &mut [f32]);
}

impl Elem for f32 {
    fn from_f64(value: f64) -> f32 {
        value as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn fill_from_f32(to: &mut [f32], from: &[f32]) {
        to.copy_from_slice(from);
    }
    fn copy_to_f32(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Elem for f64 {
    fn from_f64(value: f64) -> f64 {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn fill_from_f32(to: &mut [f64], from: &[f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = f64::from(*from));
    }
    fn copy_to_f32(from: &[f64], to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = *from as f32);
    }
}

/// `rows × cols` elements, row `r` at `data[r * ld .. r * ld + cols]`, `ld ≥ cols`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    ld: usize,
}

/// The mutable counterpart of [`View`].
///
/// Holds a pointer, not a slice: the three thirds of a fused QKV gradient are views whose rows interleave, so
/// their memory ranges overlap while their elements do not.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    data: *mut T,
    rows: usize,
    cols: usize,
    ld: usize,
    exclusive: PhantomData<&'a mut T>,
}

// SAFETY: a ViewMut is an exclusive borrow of its elements, as `&mut [T]` is.
unsafe impl<T: Send> Send for ViewMut<'_, T> {}
// SAFETY: a shared ViewMut only reads its elements.
unsafe impl<T: Sync> Sync for ViewMut<'_, T> {}

fn check(len: usize, rows: usize, cols: usize, ld: usize) {
    assert!(ld >= cols, "leading dimension {ld} is smaller than {cols} columns");
    let needed = if rows == 0 { 0 } else { (rows - 1) * ld + cols };
    assert!(len >= needed, "{len} elements cannot hold {rows} rows of {cols} with leading dimension {ld}");
}

impl<'a, T> View<'a, T> {
    /// A view over `data`; panics when `data` is too short (a bug, never user input).
    pub fn new(data: &'a [T], rows: usize, cols: usize, ld: usize) -> View<'a, T> {
        check(data.len(), rows, cols, ld);
        View { data, rows, cols, ld }
    }

    /// A view of contiguous rows.
    pub fn dense(data: &'a [T], rows: usize, cols: usize) -> View<'a, T> {
        View::new(data, rows, cols, cols)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Distance between the starts of two rows, in elements.
    pub fn ld(&self) -> usize {
        self.ld
    }
    /// Row `r`.
    pub fn row(&self, r: usize) -> &'a [T] {
        &self.data[r * self.ld..r * self.ld + self.cols]
    }
    /// The elements from the first of row 0 on, gaps included.
    pub fn data(&self) -> &'a [T] {
        self.data
    }
    /// Rows `start .. start + rows`.
    pub fn rows_at(&self, start: usize, rows: usize) -> View<'a, T> {
        View::new(&self.data[(start * self.ld).min(self.data.len())..], rows, self.cols, self.ld)
    }
    /// Columns `start .. start + cols` of every row.
    pub fn cols_at(&self, start: usize, cols: usize) -> View<'a, T> {
        assert!(start + cols <= self.cols);
        View::new(&self.data[start.min(self.data.len())..], self.rows, cols, self.ld)
    }
}

impl<'a, T: Copy> View<'a, T> {
    /// Element at `(r, c)`.
    pub fn at(&self, r: usize, c: usize) -> T {
        self.row(r)[c]
    }
}

impl<'a, T> ViewMut<'a, T> {
    /// A view over `data`; panics when `data` is too short (a bug, never user input).
    pub fn new(data: &'a mut [T], rows: usize, cols: usize, ld: usize) -> ViewMut<'a, T> {
        check(data.len(), rows, cols, ld);
        ViewMut { data: data.as_mut_ptr(), rows, cols, ld, exclusive: PhantomData }
    }

    /// A view of contiguous rows.
    pub fn dense(data: &'a mut [T], rows: usize, cols: usize) -> ViewMut<'a, T> {
        ViewMut::new(data, rows, cols, cols)
    }

    /// A view from a pointer to the first element.
    ///
    /// # Safety
    /// The elements (not the gaps between rows) must be valid and not accessed otherwise for `'a`.
    pub unsafe fn from_raw(data: *mut T, rows: usize, cols: usize, ld: usize) -> ViewMut<'a, T> {
        ViewMut { data, rows, cols, ld, exclusive: PhantomData }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Distance between the starts of two rows, in elements.
    pub fn ld(&self) -> usize {
        self.ld
    }
    /// Row `r`.
    pub fn row(&self, r: usize) -> &[T] {
        assert!(r < self.rows);
        // SAFETY: row r lies inside the borrowed elements, and `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.data.add(r * self.ld), self.cols) }
    }
    /// Row `r`, to write.
    pub fn row_mut(&mut self, r: usize) -> &mut [T] {
        assert!(r < self.rows);
        // SAFETY: row r lies inside the borrowed elements, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(r * self.ld), self.cols) }
    }
    /// Pointer to the first element of row 0.
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.data
    }
    /// The elements from the first of row 0 to the last of the last row, gaps included. Only for views that do not
    /// interleave with another one.
    pub fn data_mut(&mut self) -> &mut [T] {
        let len = if self.rows == 0 { 0 } else { (self.rows - 1) * self.ld + self.cols };
        // SAFETY: the range lies inside the slice the view was made of, and no other view interleaves with it.
        unsafe { std::slice::from_raw_parts_mut(self.data, len) }
    }
    /// Reads what has been written. Only for views that do not interleave with another one.
    pub fn as_view(&self) -> View<'_, T> {
        let len = if self.rows == 0 { 0 } else { (self.rows - 1) * self.ld + self.cols };
        // SAFETY: as in `data_mut`, shared.
        let data = unsafe { std::slice::from_raw_parts(self.data, len) };
        View { data, rows: self.rows, cols: self.cols, ld: self.ld }
    }
    /// A shorter-lived view of the same elements.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { data: self.data, rows: self.rows, cols: self.cols, ld: self.ld, exclusive: PhantomData }
    }
}
