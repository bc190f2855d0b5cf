"""The servers that Tenfold is compared with, each written as its documentation recommends."""
