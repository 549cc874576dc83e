/** A breast's own frame: how far a place is from the chest wall and below the middle of the breast, whatever the side. */

export class Frame {
  /**
   * @param {Heatmap} heatmap whose tissue is the breast
   * @param {{spacing_mm: number}} image of the answer
   */
  constructor(heatmap, { spacing_mm: spacing }) {
    const [rows, columns] = heatmap.shape;
    const filled = Array.from({ length: columns }, () => 0);
    let [first, last] = [rows, -1];
    heatmap.tissue.forEach((inside, i) => {
      if (!inside) return;
      filled[i % columns] += 1;
      const row = Math.floor(i / columns);
      [first, last] = [Math.min(first, row), Math.max(last, row)];
    });
    const [left, right] = [filled.findIndex(Boolean), filled.findLastIndex(Boolean)];
    const total = filled.reduce((sum, count) => sum + count, 0);
    const mean = filled.reduce((sum, count, column) => sum + count * column, 0) / total;
    this.spacing = spacing;
    /** The chest wall is where the breast is widest: -1 at the right edge, so that distances grow to the left. */
    this.towards = mean <= (left + right) / 2 ? 1 : -1;
    this.wall = heatmap.left + (this.towards > 0 ? left : right + 1) * heatmap.across;
    this.middle = heatmap.top + ((first + last + 1) / 2) * heatmap.down;
  }

  /** The place of an image that lies as a place of this one does, px of each. */
  to(other, { x, y }) {
    const ratio = this.spacing / other.spacing;
    return {
      x: other.wall + other.towards * this.towards * (x - this.wall) * ratio,
      y: other.middle + (y - this.middle) * ratio,
    };
  }

  /** The same for a view: as large in mm, around the same place. */
  view(other, view) {
    return { ...this.to(other, view), scale: (view.scale * other.spacing) / this.spacing };
  }
}
