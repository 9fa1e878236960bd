"""Generation: requests in, text out. Simple and correct; scheduling, paging and serving build on these seams."""
