//! The memory plan: where every slot of a program lives, computed before anything runs.
//!
//! Temporaries share one arena by liveness (first write to last use), placed largest first at the lowest offset
//! that is free for their whole life. The sum is exact, so peak memory is printed before the work starts, and a
//! step allocates nothing.

use super::builder::Program;
use super::layout::Parameter;
use super::slot::{COLUMN_ALIGNMENT, Element, Extents, SLOT_ALIGNMENT, SlotId, Storage, leading_dimension};

/// Which buffer a slot's elements are in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Buffer {
    /// The flat parameter block.
    Parameters,
    /// The flat gradient block, which begins with the first parameter that has a gradient.
    Gradients,
    /// Float inputs of this program.
    Inputs,
    /// Integer inputs of this program.
    Ints,
    /// The shared arena.
    Arena,
}

/// Place of one slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Buffer it is in.
    pub buffer: Buffer,
    /// First element.
    pub offset: usize,
    /// Distance between rows, in elements.
    pub ld: usize,
}

/// Places of all slots of a program at a capacity.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Largest batch that fits.
    pub capacity: Extents,
    places: Vec<Place>,
    /// Float elements of the arena.
    pub arena_len: usize,
    /// Float elements of the inputs.
    pub inputs_len: usize,
    /// Integer elements of the inputs.
    pub ints_len: usize,
}

impl Plan {
    /// Plans `program` for batches up to `capacity`.
    pub fn new(program: &Program, capacity: Extents) -> Plan {
        Plan::with_halves(program, capacity, |_| false)
    }

    /// As [`Plan::new`], for an executor that stores some slots of the arena in elements of half the size. Offsets and
    /// lengths count whole elements (words), leading dimensions those of the slot. Columns of a slot of halves
    /// ([`Storage::Alias`]) have no place in words: their executor resolves them itself.
    pub fn with_halves(program: &Program, capacity: Extents, half: impl Fn(SlotId) -> bool) -> Plan {
        let lives = lives(program);
        let mut places = vec![Place { buffer: Buffer::Arena, offset: 0, ld: 1 }; program.slots.len()];
        let (mut inputs_len, mut ints_len) = (0, 0);
        let gradients = program.layout.stretch(Parameter::differentiated);
        let mut arena: Vec<(SlotId, usize)> = Vec::new();
        for (id, slot) in program.slots() {
            let rows = capacity.of(slot.rows);
            let place = &mut places[id.index()];
            match (slot.element, slot.storage) {
                (_, Storage::Alias { .. }) => {}
                (Element::Int, _) => {
                    *place = Place { buffer: Buffer::Ints, offset: ints_len, ld: slot.cols };
                    ints_len += (rows * slot.cols).next_multiple_of(SLOT_ALIGNMENT);
                }
                (Element::Float, Storage::Parameter(parameter)) => {
                    let parameter = program.layout.get(parameter);
                    *place =
                        Place { buffer: Buffer::Parameters, offset: parameter.offset, ld: parameter.ld() };
                }
                (Element::Float, Storage::Gradient(parameter)) => {
                    let parameter = program.layout.get(parameter);
                    let offset = parameter.offset - gradients.start;
                    *place = Place { buffer: Buffer::Gradients, offset, ld: parameter.ld() };
                }
                (Element::Float, Storage::Input) => {
                    let ld = row_stride(slot.cols);
                    *place = Place { buffer: Buffer::Inputs, offset: inputs_len, ld };
                    inputs_len += (rows * ld).next_multiple_of(SLOT_ALIGNMENT);
                }
                (Element::Float, Storage::Temporary | Storage::Output) => {
                    place.ld = row_stride(slot.cols);
                    let words = if half(id) { (rows * place.ld).div_ceil(2) } else { rows * place.ld };
                    let len = words.next_multiple_of(SLOT_ALIGNMENT);
                    if lives[id.index()].is_some() {
                        arena.push((id, len));
                    }
                }
            }
        }
        let arena_len = place_arena(&mut arena, &lives, &mut places);
        for (id, _) in program.slots() {
            resolve_alias(program, id, &mut places);
        }
        Plan { capacity, places, arena_len, inputs_len, ints_len }
    }

    /// Place of a slot.
    pub fn place(&self, slot: SlotId) -> Place {
        self.places[slot.index()]
    }

    /// Bytes of arena and inputs with `float_bytes` a float element.
    pub fn bytes(&self, float_bytes: usize) -> usize {
        (self.arena_len + self.inputs_len) * float_bytes + self.ints_len * 4
    }
}

/// Single columns (LayerNorm statistics, losses) are dense: padding them would cost eight times their size.
fn row_stride(cols: usize) -> usize {
    if cols < COLUMN_ALIGNMENT { cols } else { leading_dimension(cols) }
}

/// First and last operation that touches each root slot; outputs live to the end. `None` for unused slots.
fn lives(program: &Program) -> Vec<Option<(usize, usize)>> {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; program.slots.len()];
    for (index, op) in program.ops.iter().enumerate() {
        op.visit(|slot, _| {
            let root = program.root(slot);
            let life = lives[root.index()].get_or_insert((index, index));
            life.1 = index;
            if program.slot(root).storage == Storage::Output {
                life.1 = usize::MAX;
            }
        });
    }
    lives
}

fn place_arena(
    arena: &mut [(SlotId, usize)],
    lives: &[Option<(usize, usize)>],
    places: &mut [Place],
) -> usize {
    // Largest first; ties by slot number keep the plan deterministic.
    arena.sort_by_key(|&(id, len)| (std::cmp::Reverse(len), id));
    let mut placed: Vec<(usize, usize, usize, usize)> = Vec::new(); // (offset, end, first, last)
    let mut total = 0;
    for &(id, len) in arena.iter() {
        let Some((first, last)) = lives[id.index()] else { continue };
        let mut offset = 0;
        // `placed` is sorted by offset: slide past every slot alive at the same time that is in the way.
        for &(other, end, other_first, other_last) in &placed {
            if other_first <= last && first <= other_last && other < offset + len && offset < end {
                offset = end;
            }
        }
        let at = placed.partition_point(|p| p.0 <= offset);
        placed.insert(at, (offset, offset + len, first, last));
        places[id.index()] = Place { buffer: Buffer::Arena, offset, ld: places[id.index()].ld };
        total = total.max(offset + len);
    }
    total
}

fn resolve_alias(program: &Program, id: SlotId, places: &mut [Place]) -> Place {
    if let Storage::Alias { of, column } = program.slot(id).storage {
        let parent = resolve_alias(program, of, places);
        places[id.index()] = Place { offset: parent.offset + column, ..parent };
    }
    places[id.index()]
}
