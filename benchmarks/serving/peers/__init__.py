"""The servers that Tenfold is compared with: one file each, as its own documentation would have it written."""
