"""Where rows come from: folders, text files, tables, and the columns that are given other names."""
