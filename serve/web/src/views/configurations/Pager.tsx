/** Earlier and later pages of a list that has page numbers. */
interface PagerProps {
  page: number;
  total: number;
  perPage: number;
  onPage: (page: number) => void;
}

export function Pager({ page, total, perPage, onPage }: PagerProps) {
  const last = Math.max(1, Math.ceil(total / perPage));
  if (last === 1) return null;
  return (
    <div class="row">
      <button type="button" disabled={page <= 1} onClick={() => onPage(page - 1)}>Previous</button>
      <span>Page {page} of {last}</span>
      <button type="button" disabled={page >= last} onClick={() => onPage(page + 1)}>Next</button>
    </div>
  );
}
