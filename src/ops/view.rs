//! Row-major matrix views with an explicit leading dimension: what every operation takes and gives.

/// Element of a floating-point matrix: `f32` in the CPU executor, `f64` in the reference executor.
pub trait Elem: Copy + Send + Sync + Default + PartialEq + std::fmt::Debug + 'static {
    /// Nearest value of this type.
    fn from_f64(value: f64) -> Self;
    /// Exact widening.
    fn to_f64(self) -> f64;
}

impl Elem for f32 {
    fn from_f64(value: f64) -> f32 {
        value as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Elem for f64 {
    fn from_f64(value: f64) -> f64 {
        value
    }
    fn to_f64(self) -> f64 {
        self
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
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    ld: usize,
}

fn check(len: usize, rows: usize, cols: usize, ld: usize) {
    assert!(
        ld >= cols,
        "leading dimension {ld} is smaller than {cols} columns"
    );
    let needed = if rows == 0 { 0 } else { (rows - 1) * ld + cols };
    assert!(
        len >= needed,
        "{len} elements cannot hold {rows} rows of {cols} with leading dimension {ld}"
    );
}

impl<'a, T> View<'a, T> {
    /// A view over `data`; panics when `data` is too short (a bug, never user input).
    pub fn new(data: &'a [T], rows: usize, cols: usize, ld: usize) -> View<'a, T> {
        check(data.len(), rows, cols, ld);
        View {
            data,
            rows,
            cols,
            ld,
        }
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
        View::new(
            &self.data[(start * self.ld).min(self.data.len())..],
            rows,
            self.cols,
            self.ld,
        )
    }
    /// Columns `start .. start + cols` of every row.
    pub fn cols_at(&self, start: usize, cols: usize) -> View<'a, T> {
        assert!(start + cols <= self.cols);
        View::new(
            &self.data[start.min(self.data.len())..],
            self.rows,
            cols,
            self.ld,
        )
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
        ViewMut {
            data,
            rows,
            cols,
            ld,
        }
    }

    /// A view of contiguous rows.
    pub fn dense(data: &'a mut [T], rows: usize, cols: usize) -> ViewMut<'a, T> {
        ViewMut::new(data, rows, cols, cols)
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
        &self.data[r * self.ld..r * self.ld + self.cols]
    }
    /// Row `r`, to write.
    pub fn row_mut(&mut self, r: usize) -> &mut [T] {
        &mut self.data[r * self.ld..r * self.ld + self.cols]
    }
    /// The elements from the first of row 0 on, gaps included.
    pub fn data_mut(&mut self) -> &mut [T] {
        self.data
    }
    /// Reads what has been written.
    pub fn as_view(&self) -> View<'_, T> {
        View {
            data: self.data,
            rows: self.rows,
            cols: self.cols,
            ld: self.ld,
        }
    }
    /// A shorter-lived view of the same elements.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut {
            data: self.data,
            rows: self.rows,
            cols: self.cols,
            ld: self.ld,
        }
    }
}
