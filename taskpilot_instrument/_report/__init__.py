"""A report on a day, week or month: made from hourly figures, shown as Markdown, a page or JSON."""
