"""What a bad disk or a careless copy does to a file."""


def flip_bit(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))


def wipe(path, offset, length):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(length))
